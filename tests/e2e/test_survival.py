"""The nursery's real engines under SIGKILL: the run continues in place, or the next start resumes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import Run, run_solon
from tests.e2e.test_run import end, start, wait_for_step

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ON_POLICY = ("--set", "staleness.target_staleness=0", "--seed", "7", "--steps", "6", "--set", "checkpoint_every=2")


def worker_of(child: subprocess.Popen[str], kind: str) -> psutil.Process:
    """The process of a worker of a run that has its own cluster: `worker_of(child, "Judge")`."""
    for process in psutil.Process(child.pid).children(recursive=True):
        if f"ray::{kind}" in " ".join(process.cmdline()):
            return process
    raise AssertionError(f"no {kind} among the processes of the run")


def trained_weights(run: Run, step: int) -> dict[str, str]:
    """Digests of the policy's and the learner's exact weights after this many steps."""
    manifest = json.loads((run.directory / "checkpoints" / f"step-{step:06d}" / "manifest.json").read_text())
    return {name: digest for name, digest in manifest["files"].items() if name.endswith(".safetensors")}


def committed(run: Run) -> dict[int, list[int]]:
    """Ordinals by step; the last line of a step counts."""
    return {line["step"]: line["batch/ordinals"] for line in run.metrics}


@pytest.fixture(scope="module")
def undisturbed(nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_solon(tmp_path_factory.mktemp("undisturbed"), "run", *ON_POLICY)
    assert run.returncode == 0, run.output[-3000:]
    return run


def test_a_driver_that_is_killed_resumes_to_the_same_weights_bit_for_bit(undisturbed: Run, tmp_path: Path):
    child = start(tmp_path, "run", *ON_POLICY)
    try:
        wait_for_step(child, tmp_path / "runs" / "run", 3)
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
    finally:
        end(child)
    resumed = run_solon(tmp_path, "run", *ON_POLICY, "--resume")
    assert resumed.returncode == 0, resumed.output[-3000:]
    assert resumed.summary["status"] == "completed"
    assert resumed.summary["steps"] == 6
    assert resumed.summary["weights"]["attested"] == 6
    assert trained_weights(resumed, 6) == trained_weights(undisturbed, 6)
    assert committed(resumed) == committed(undisturbed)
    assert resumed.summary["eval"] == undisturbed.summary["eval"]
    assert [event["step"] for event in resumed.events if event["event"] == "resumed"] == [2]
    # And once more: there is nothing left to do, and no engine is started to find that out.
    began = time.monotonic()
    again = run_solon(tmp_path, "run", *ON_POLICY, "--resume")
    assert again.returncode == 0
    assert "nothing left to do" in again.output
    assert time.monotonic() - began < 15


def test_a_run_of_another_configuration_is_not_resumed(undisturbed: Run):
    folder = undisturbed.directory.parents[1]
    changed = run_solon(folder, "run", *ON_POLICY, "--set", "learn.learning_rate=1e-5", "--resume")
    assert changed.returncode == 2
    assert "learn.learning_rate was" in changed.output
    assert "Traceback" not in changed.output


def test_every_worker_may_be_killed_and_the_run_continues_in_place(nursery: Any, tmp_path: Path):
    steps = 26
    quick = ["recovery.beat_every_s=1", "recovery.beat_timeout_s=10", "checkpoint_every=4"]
    child = start(tmp_path, "run", "--steps", str(steps), *(part for key in quick for part in ("--set", key)))
    directory = tmp_path / "runs" / "run"
    try:
        wait_for_step(child, directory, 2)
        for kind, fault in (("Rollout", signal.SIGKILL), ("Judge", signal.SIGSTOP), ("Learner", signal.SIGKILL)):
            before = (directory / "events.jsonl").read_text().count('"worker_recovered"')
            os.kill(worker_of(child, kind).pid, fault)
            deadline = time.monotonic() + 120
            while (directory / "events.jsonl").read_text().count('"worker_recovered"') == before:
                assert child.poll() is None, child.communicate()[0][-3000:]
                assert time.monotonic() < deadline, f"the {kind} did not come back"
                time.sleep(0.2)
        output, _ = child.communicate(timeout=400)
    finally:
        end(child)
    run = Run(child.returncode, output, directory)
    assert run.returncode == 0, output[-3000:]
    summary = run.summary
    assert summary["status"] == "completed"
    trained = [ordinal for ordinals in committed(run).values() for ordinal in ordinals]
    assert len(trained) == len(set(trained)) == steps * 16
    assert summary["groups"]["admitted"] == summary["groups"]["committed"] + summary["groups"]["dropped"]
    assert summary["faults"]["recovered"] == 3
    assert summary["weights"]["attested"] == summary["weights"]["published"] == steps
    assert summary["staleness"]["max"] <= summary["staleness"]["bound"]
    assert summary["eval"]["after"]["mean"] >= 0.85
    again = [event for event in run.events if event["event"] == "learner_trained_again"]
    assert all(event["same_weights"] for event in again)
