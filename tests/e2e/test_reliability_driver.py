"""A driver that is stopped or killed, in its own process, with stand-ins for the models: its leftovers, and how the
next driver uses them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from solon.checkpoints.folder import CheckpointFolder
from solon.doctor.diagnosis import diagnose
from solon.doctor.facts import look
from solon.files.prompts import PromptSource, load_prompts
from solon.ledger.conservation import account
from solon.ledger.ledger import Grant
from solon.records import Feedback
from tests.e2e.conftest import ROOT, environment
from tests.standins.workers import batch_digest, make_group
from tests.unit.run_files import make_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RUN = """\
checkpoint_every = 2
[rollout]
num_actors = 2
num_cpus = 0.1
[judging]
num_cpus = 0.1
[learn]
num_cpus = 0.1
[feedback]
min_valid = 1
[ledger]
batch_groups = 4
[recovery]
beat_every_s = 0.5
grace_s = 2
"""
STAGES = ("saved", "written", "synced", "replacing", "renamed", "latest")


class Night:
    """A run directory and the processes that worked on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / "run"
        make_run(folder, RUN)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.standin_run", str(self.folder), *arguments],
            cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        child = self.start(*arguments)
        try:
            output, _ = child.communicate(timeout=90)
        finally:
            self.end(child)
        return child.returncode, output

    def until(self, child: subprocess.Popen[str], condition: Callable[[], Any], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert child.poll() is None, child.communicate()[0][-3000:]
            assert time.monotonic() < deadline, "it did not come to that in time"
            time.sleep(0.02)

    def end(self, child: subprocess.Popen[str]) -> None:
        if child.poll() is None:
            child.kill()
            child.communicate(timeout=30)

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def summary(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return result

    def actors(self) -> set[int]:
        """Processes that hosted a worker, ended or not."""
        return {int(path.name.rpartition(".")[2]) for path in (self.folder / "pids").iterdir()}

    def check(self, steps: int) -> None:
        """What must hold at the end: by the files alone, every group was trained exactly once, and the learner's digest
        is the one of those groups."""
        assert self.summary["status"] == "completed"
        found = account(self.lines("events.jsonl"), self.lines("metrics.jsonl"), admitted=steps * 4, held=())
        assert found.is_balanced, found
        batches = {line["step"]: line["batch/ordinals"] for line in self.lines("metrics.jsonl")}
        assert sorted(batches) == list(range(steps))
        trained = [ordinal for step in range(steps) for ordinal in batches[step]]
        assert len(trained) == len(set(trained)) == steps * 4 == self.summary["groups"]["admitted"]
        last = CheckpointFolder(self.directory / "checkpoints").last()
        assert last is not None
        assert last.step == steps
        learner = json.loads((last.path / "learner.json").read_text())
        prompts = PromptSource(load_prompts(self.folder / "prompts.jsonl").prompts, seed=0)
        digest = "stand-in"
        for step in range(steps):
            payloads: list[Any] = []
            for ordinal in batches[step]:
                payloads.append(make_group(Grant(ordinal, 0, 0), prompts[ordinal], 0, tokens=64))
                payloads.append(Feedback(ordinal=ordinal, attempt=0, rewards_G=(1.0,), labels=()))
            digest = batch_digest(digest, payloads)
        assert learner == {"version": steps, "digest": digest}


def all_gone(pids: set[int], timeout_s: float = 30) -> None:
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=timeout_s)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


def test_a_driver_that_is_asked_to_stop_leaves_a_checkpoint_and_no_process_and_its_run_resumes(tmp_path: Path):
    """SIGTERM: the current step is finished and saved; the next start reaches the same count."""
    night = Night(tmp_path)
    child = night.start("--steps", "2000")
    try:
        night.until(child, lambda: len(night.lines("metrics.jsonl")) >= 3)
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=60)
    finally:
        night.end(child)
    assert (child.returncode, output.splitlines()[-1]) == (0, "stopped"), output
    assert night.summary["status"] == "stopped"
    steps = night.summary["steps"]
    last = CheckpointFolder(night.directory / "checkpoints").last()
    assert last is not None
    assert last.step == steps >= 3
    all_gone(night.actors())
    code, output = night.run("--steps", str(steps + 3), "--resume")
    assert code == 0, output
    night.check(steps + 3)


def kill_after_five_steps(night: Night) -> None:
    """A driver that SIGKILL ends once it has committed five steps."""
    child = night.start("--steps", "2000")
    try:
        night.until(child, lambda: len(night.lines("metrics.jsonl")) >= 5)
        child.kill()
        child.communicate(timeout=30)
    finally:
        night.end(child)


def test_a_killed_driver_takes_its_workers_down_and_the_next_one_resumes_from_the_checkpoint(tmp_path: Path):
    """SIGKILL, then an end in the middle of writing a checkpoint. The ledger dies with the driver, which only needs the
    contents of the checkpoint to restart."""
    night = Night(tmp_path)
    kill_after_five_steps(night)
    assert night.actors()
    all_gone(night.actors())
    last = CheckpointFolder(night.directory / "checkpoints").last()
    assert last is not None
    assert 4 <= last.step <= len(night.lines("metrics.jsonl"))
    following = str(last.step + 4)
    code, output = night.run("--steps", following, "--resume", "--dies-at", f"replacing:{last.step + 2}")
    assert code == 9, output
    all_gone(night.actors())
    code, output = night.run("--steps", following, "--resume")
    assert code == 0, output
    # The second start found the same checkpoint as the first: the one being written was not whole.
    assert [event["step"] for event in night.lines("events.jsonl") if event["event"] == "resumed"] == [last.step] * 2
    night.check(int(following))


def test_after_half_of_the_lines_were_cut_doctor_and_resume_agree_and_report_no_group_as_lost(tmp_path: Path):
    night = Night(tmp_path)
    kill_after_five_steps(night)
    all_gone(night.actors())
    # The first checkpoint comes after the first step, whatever `checkpoint_every` is.
    assert [event["step"] for event in night.lines("events.jsonl") if event["event"] == "checkpoint"][:2] == [1, 2]
    metrics = night.directory / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    part = night.directory / "rollouts" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    before = diagnose(look(night.directory))
    assert "2 of " in before.findings["records"][0]
    assert any("part-000000.parquet cannot be read" in line for line in before.findings["records"])
    last = CheckpointFolder(night.directory / "checkpoints").last()
    assert last is not None
    assert f"--resume continues from step-{last.step:06d}" in before.findings["records"][-1]
    assert "numbers" not in before.findings
    code, output = night.run("--steps", str(last.step + 2), "--resume")
    assert code == 0, output
    (resumed,) = [event for event in night.lines("events.jsonl") if event["event"] == "resumed"]
    assert resumed["records"] == list(before.findings["records"][:-1])
    assert resumed["unlisted"]
    after = diagnose(look(night.directory))
    assert after.status == "completed"
    assert "numbers" not in after.findings
    assert "trained or dropped as a checkpoint says, whose lines are gone" in after.findings["groups"][0]


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_a_driver_that_dies_while_writing_a_checkpoint_leaves_a_whole_one(tmp_path: Path, stage: str):
    """A process that ends between two system calls, at every stage; the unit tests do it quickly with files alone."""
    night = Night(tmp_path)
    code, output = night.run("--steps", "6", "--dies-at", f"{stage}:4")
    assert code == 9, output
    found = CheckpointFolder(night.directory / "checkpoints").last()
    assert found is not None
    assert found.step == (4 if stage in ("renamed", "latest") else 2)
    code, output = night.run("--steps", "6", "--resume")
    assert code == 0, output
    night.check(6)
