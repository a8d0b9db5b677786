"""Machines of a cluster that lack files, a shared folder or variables are named before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.pipeline_file import load_run
from cluster.ray_session import machines
from cluster.ray_session.machines import Findings, Machine, check_machines
from solon.errors import InputError
from solon.host.submitted_job import REQUIRED
from tests.unit.run_files import make_run

SETTINGS = '[feedback]\ntask = "pointwise"\ntemplate = "compact"\n[learn]\nlabels = {pool = "learner"}\n'


def machine(name: str, **labels: str) -> Machine:
    return Machine(id=name, address=name, resources={"CPU": 8, "object_store_memory": 2**30}, labels=labels)


class Cluster:
    """Two machines; `answers` changes what the second one says."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **labels: str) -> None:
        self.run = load_run(make_run(tmp_path, SETTINGS))
        self.root = tmp_path / "runs"
        monkeypatch.setattr(machines, "_machines", lambda: [machine("here"), machine("there", **labels)])

    def check(self, **changes: Any) -> list[str]:
        def ask(paths: Any, variables: Any) -> dict[str, Findings]:
            found = {name: machines._look(some, ()) for name, some in paths.items()}
            there = found["there"]
            files = {path: changes.get("files", {}).get(Path(path).name, one) for path, one in there.files.items()}
            if "mark" in changes:
                files = {path: "" if ".solon-" in path else one for path, one in files.items()}
            shared, lacks = changes.get("shared_memory", 2**31), changes.get("lacks", [])
            found["there"] = Findings(files=files, lacks=lacks, shared_memory=shared)
            found["here"] = Findings(files=found["here"].files, lacks=[], shared_memory=2**31)
            return {} if changes.get("silent") else found

        return check_machines(self.run, self.root, ask=ask)


def test_machines_with_the_same_files_pass_and_no_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(tmp_path, monkeypatch, pool="learner")
    assert cluster.check() == []
    assert not cluster.root.exists()


@pytest.mark.parametrize(
    ("digest", "words"), [("", "the machine there has no "), ("x", "the machine there has other files")]
)
def test_a_machine_without_the_models_files_is_named_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str, words: str
):
    cluster = Cluster(tmp_path, monkeypatch)
    model = Path(next(pool.model for pool in cluster.run.workers.values() if pool.role == "rollout"))
    with pytest.raises(InputError) as error:
        cluster.check(files={model.name: digest})
    assert words in str(error.value)
    assert f"{model}, which " in str(error.value)


def test_a_learners_machine_that_does_not_see_the_folder_of_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(InputError, match="machine there, where the learner may run, does not see the folder"):
        Cluster(tmp_path, monkeypatch, pool="learner").check(mark=True)


def test_a_machine_that_lacks_a_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(REQUIRED, "JUDGE_KEY")
    with pytest.raises(InputError, match="the machine there lacks JUDGE_KEY"):
        Cluster(tmp_path, monkeypatch).check(lacks=["JUDGE_KEY"])


def test_little_shared_memory_and_a_silent_machine_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(tmp_path, monkeypatch)
    (warning,) = cluster.check(shared_memory=64 * 2**20)
    assert "has 64 MiB in /dev/shm, expected at least the 1024 MiB" in warning
    assert len(cluster.check(silent=True)) == 2


def test_the_digest_of_a_folder_notices_a_changed_and_a_missing_file(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "config.json").write_text("{}")
    (first / "weights").write_bytes(b"0" * 100)
    shutil.copytree(first, second)

    def digest(path: Path) -> str:
        return machines._look((str(path),), ()).files[str(path)]

    assert digest(first) == digest(second)
    (second / "config.json").write_text("[]")
    assert digest(first) != digest(second)
    assert digest(tmp_path / "nowhere") == ""
