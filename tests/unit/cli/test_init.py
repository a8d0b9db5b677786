"""`solon init` and `solon doctor` without a run: files to start from, and what a machine lacks."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from cluster.config import fitting
from cluster.config.run_file import RunFile
from cluster.placement import machine
from cluster.placement.machine import machine_findings
from solon.cli.init import FILES, run_init
from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.files.prompts import load_prompts


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("audit_judge", ["", "other/auditor"])
def test_the_files_are_whole_and_fit_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, audit_judge: str
):
    monkeypatch.setattr(fitting, "machine_gpus", lambda: int(on_gpu))
    told = run_init(tmp_path, policy="org/policy", judge="org/judge", audit_judge=audit_judge, as_json=True)
    run = RunFile.load(tmp_path / "run.toml")
    assert (run.policy, run.judge, run.watch.audit_judge) == ("org/policy", "org/judge", audit_judge)
    assert (run.rollout.num_gpus > 0) is on_gpu
    assert Path(run.prompts).name == "prompts.jsonl"
    constitution = Constitution.load(run.constitution)
    assert {principle.id for principle in constitution.principles} == {"helpful", "honest", "harmless", "brief"}
    for name in ("prompts.jsonl", "heldout.jsonl"):
        assert len(load_prompts(tmp_path / name).prompts) == len((tmp_path / name).read_text().splitlines())
    assert told["next"] == [f"solon check {tmp_path / 'run.toml'}", f"solon train {tmp_path / 'run.toml'}"]


def test_nothing_is_replaced(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text("mine")
    with pytest.raises(InputError, match=r"has prompts\.jsonl already"):
        run_init(tmp_path, policy="org/policy", judge="", audit_judge="", as_json=True)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_model_in_a_folder_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my model").mkdir()
    monkeypatch.chdir(tmp_path)
    run_init(Path("new"), policy="my model", judge="", audit_judge="", as_json=True)
    run = RunFile.load("new/run.toml")
    assert run.policy == run.judge == str(tmp_path / "my model")


def test_files_that_are_written_are_those_that_are_reported(tmp_path: Path):
    told = run_init(tmp_path, policy="a/b", judge="", audit_judge="", as_json=True)
    assert sorted(Path(name).name for name in told["files"]) == sorted(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def levels(tmp_path: Path) -> dict[str, str]:
    return {one.what: one.level for one in machine_findings(tmp_path)}


def test_this_machine_has_what_the_tests_need(tmp_path: Path):
    found = machine_findings(tmp_path)
    assert {one.what for one in found} >= {"Python", "packages", "vLLM", "processor", "memory", "GPU", "ports", "runs"}
    assert [one for one in found if one.level == "problem" and one.what in ("Python", "packages", "ports")] == []
    assert all(one.remedy for one in found if one.level == "problem")


def test_a_gpu_with_packages_for_the_processor_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "machine_gpus", lambda: 1)
    monkeypatch.setattr(machine, "_version", lambda name: {"torch": "2.13.0+cpu"}.get(name))
    assert levels(tmp_path)["GPU"] == "problem"


def test_a_package_of_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: "0.1" if name == "transformers" else known(name))
    (packages,) = [one for one in machine_findings(tmp_path) if one.what == "packages"]
    assert packages.found == "transformers 0.1 (expected ==5.17.0)"


def test_little_shared_memory_and_a_folder_without_rights_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(64 * 2**20, 0, 2**20))
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    found = levels(tmp_path)
    assert (found["shared memory"], found["runs"]) == ("problem", "problem")
