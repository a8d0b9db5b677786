"""Which code runs: Solon started in a folder in which every importable name is a trap."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NURSERY, RAY, ROOT, ray_head
from tests.e2e.standin_runs import SETTINGS as STANDIN
from tests.e2e.test_label import SETTINGS as LABEL
from tests.e2e.test_submit import run
from tests.e2e.traps import TrapFolder, plain_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SHORT = ("--steps", "1", "--set", "evaluate.evaluator=''", "--set", "evaluate.prompts=''",
         "--set", "ledger.batch_groups=2")  # fmt: skip
BEFORE_SOLON = ("solon", "warnings", "importlib", "keyword", "operator", "reprlib", "collections", "types", "functools",
                "contextlib")  # fmt: skip
"""Modules that Python imports for `python -m solon` before the first line of Solon's."""
STANDINS = [sys.executable, "-P", "-m", "tests.e2e.standin_solon", "train", str(NURSERY), "--steps", "1",
            *(part for setting in STANDIN for part in ("--set", setting))]  # fmt: skip


def solon(*arguments: str) -> list[str]:
    """The installed script, or its equivalent."""
    script = Path(sys.executable).with_name("solon")
    return [str(script), *arguments] if script.exists() else [sys.executable, "-P", "-m", "solon", *arguments]


@pytest.fixture
def traps(tmp_path: Path) -> TrapFolder:
    return TrapFolder(tmp_path / "downloaded")


def must_end_well(done: subprocess.CompletedProcess[str], traps: TrapFolder) -> None:
    assert not traps.ran, traps.ran[:5]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_traps_work(traps: TrapFolder):
    run(sys.executable, "-c", "import safetensors", cwd=traps.path)
    assert any(line.startswith("safetensors ") for line in traps.ran)


def test_check_train_and_doctor_run_nothing_of_the_folder_they_are_started_in(nursery: Any, traps: TrapFolder):
    must_end_well(run(*solon("check", str(NURSERY)), cwd=traps.path), traps)
    must_end_well(run(*solon("train", str(NURSERY), "--name", "one", *SHORT), cwd=traps.path), traps)
    assert json.loads((traps.path / "runs" / "one" / "summary.json").read_text())["steps"] == 1
    must_end_well(run(*solon("doctor", "one"), cwd=traps.path), traps)


def test_label_and_a_comparison_of_judges_run_nothing_of_the_folder_they_are_started_in(
    nursery: Any, traps: TrapFolder
):
    lines = Path(nursery.train_prompts).read_text().splitlines()[:4]
    (traps.path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    command = solon("label", "prompts.jsonl", "--policy", "nursery:policy", "--judge", "nursery:judge",
                    "--constitution", "nursery:constitution", "--out", "labels", *LABEL)  # fmt: skip
    must_end_well(run(*command, cwd=traps.path), traps)
    compare = solon("judges", "compare", "nursery:judge", "--pairs", "nursery", "--limit", "40", "--parts", "1",
                    "--max-model-len", "256")  # fmt: skip
    must_end_well(run(*compare, cwd=traps.path), traps)


def test_python_m_solon_runs_none_of_the_libraries_in_the_folder_it_is_started_in(tmp_path: Path):
    """Python's own imports before the first line of Solon's cannot be prevented: docs/security.md names it."""
    traps = TrapFolder(tmp_path / "downloaded")
    shutil.rmtree(traps.path / "solon")
    page = (ROOT / "docs" / "security.md").read_text()
    for name in BEFORE_SOLON:
        assert f"`{name}`" in page
        (traps.path / f"{name}.py").unlink()
    must_end_well(run(sys.executable, "-m", "solon", "--version", cwd=traps.path), traps)


def test_jobs_and_runs_that_join_run_nothing_of_the_folder_they_are_started_in(
    nursery: Any, token_head: dict[str, str], traps: TrapFolder, tmp_path: Path
):
    variables = {**token_head, "RAY_AUTH_MODE": "token", "SOLON_RUNS": str(tmp_path / "runs")}
    joined = run(*STANDINS, "--name", "joined", cwd=traps.path, env={**variables, "RAY_ADDRESS": token_head["GCS"]})
    must_end_well(joined, traps)
    entry = ["env", f"SOLON_RUNS={tmp_path / 'runs'}", *STANDINS, "--name", "job"]
    job = run(RAY, "job", "submit", "--working-dir", str(ROOT), "--", *entry, cwd=traps.path, env=variables)
    must_end_well(job, traps)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"joined", "job"}


JOIN = """
from cluster.ray_session import worker_path
worker_path.import_folders = lambda: []  # as where Solon is installed on every machine
import asyncio
from actors.calls import call
from actors.judge import JudgeActor
from cluster.ray_session.session import cluster
from solon.errors import ForeignCodeError
with cluster():
    try: asyncio.run(call(JudgeActor.remote(None, None, None, name="judge-0").__ray_ready__.remote(), who="judge-0"))
    except ForeignCodeError as error: print(error)
    try: worker_path.refuse_foreign_code()
    except worker_path.InputError as error: print(error)
"""


def test_a_machine_whose_own_path_shadows_solon_is_named(tmp_path: Path):
    other = tmp_path / "other"
    (other / "actors").mkdir(parents=True)
    (other / "actors" / "__init__.py").touch()
    with ray_head(RAY_AUTH_MODE="disabled", PYTHONPATH=f"{other}{os.pathsep}{ROOT}") as variables:
        join = plain_environment(
            ROOT, RAY_ADDRESS=variables["GCS"], RAY_AUTH_MODE="disabled", SOLON_ALLOW_OPEN_CLUSTER="1"
        )
        done = run(sys.executable, "-P", "-c", JOIN, cwd=tmp_path, env=join)
    assert done.returncode == 0, done.stderr[-3000:]
    (lost,) = [line for line in done.stdout.splitlines() if line.startswith("judge-0 could not import")]
    assert lost.endswith("on its machine: ModuleNotFoundError: No module named 'actors.judge'")
    (refused,) = [line for line in done.stdout.splitlines() if line.startswith("on the machine ")]
    assert f"{other} holds `actors/`, which shadows Solon's package actors in {ROOT}" in refused
