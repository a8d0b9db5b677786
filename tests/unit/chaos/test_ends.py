"""A driver that ends without a cause must not pass the chaos harness."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.ends import Driver

FAILED = {"status": "failed", "failure": "RunFailedError: the raylet died"}
RESUME = "solon train run.toml --name run --resume"


def ended(folder: Path, code: str, *, faults: list[str], summary: dict[str, Any] | None = None) -> Driver:
    """A driver that did this and was hurt like that."""
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    driver = Driver.start([sys.executable, "-c", code], log=folder / "run.log", environment=os.environ)
    driver.process.wait(timeout=60)
    driver.started, driver.faults = 0.0, faults
    return driver


def test_a_driver_with_a_full_disk_is_still_heard(tmp_path: Path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9)); print('x' * 1000, flush=True)"
    assert ended(tmp_path, code, faults=[]).said() == "x" * 1000 + "\n"


def test_an_end_with_a_cause_and_a_resume_command_draws_no_complaint(tmp_path: Path):
    driver = ended(tmp_path, f"print({RESUME!r}); exit(1)", faults=["kill raylet"], summary=FAILED)
    assert driver.complaints(tmp_path, names_command=True) == ([], "RunFailedError")


@pytest.mark.parametrize(
    ("code", "faults", "summary", "said"),
    [
        ("exit(1)", ["kill raylet"], None, "no summary"),
        ("exit(1)", ["kill raylet"], {"status": "failed", "failure": "RunFailedError: "}, "without a cause"),
        ("exit(1)", ["kill gcs"], FAILED, "did not name the command"),
        (f"print({RESUME!r}); exit(1)", ["kill rollout"], FAILED, "the driver ended with 1"),
        ("raise ValueError", ["fill disk"], {"status": "failed", "failure": "ValueError: x"}, "traceback"),
        (f"import os; os.kill(os.getpid(), {signal.SIGABRT})", ["kill raylet"], None, "exit code -6"),
        (f"import os; os.kill(os.getpid(), {signal.SIGTERM})", ["kill judge"], None, "no one asked it to"),
    ],
)
def test_an_end_without_cause_or_resume_command_is_a_complaint(
    tmp_path: Path, code: str, faults: list[str], summary: dict[str, Any] | None, said: str
):
    complaints, _ = ended(tmp_path, code, faults=faults, summary=summary).complaints(tmp_path, names_command=True)
    assert len(complaints) == 1
    assert said in complaints[0]


def test_a_killed_driver_needs_no_summary_and_an_older_summary_does_not_count_as_its_own(tmp_path: Path):
    driver = ended(tmp_path, f"import os; os.kill(os.getpid(), {signal.SIGKILL})", faults=["kill driver"])
    assert driver.complaints(tmp_path, names_command=True) == ([], "")
    driver = ended(tmp_path, "exit(1)", faults=["kill raylet"], summary=FAILED)
    driver.started = time.time() + 1
    assert driver.summary(tmp_path) == {}
