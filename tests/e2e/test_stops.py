"""A run that is asked to stop in any way: the current step is finished, everything is written, exit 0, and `--resume`
reaches the result of an undisturbed run."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from solon.checkpoints.folder import read_checkpoint
from tests.e2e.conftest import ROOT
from tests.e2e.standin_runs import audit, lines, standin_command, start
from tests.e2e.test_submit import RAY, head

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STEPS = 12
BATCH = 4
SLOW = json.dumps({"seconds": 0.5})
SLOWER = json.dumps({"seconds": 4})
"""A run that is still running when Ray's own commands have started."""

_ = head  # a fixture


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="so", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def assert_stopped(directory: Path) -> int:
    """It stopped in order; returns the number of its steps."""
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "stopped"
    done = len(lines(directory / "metrics.jsonl"))
    latest = directory / "checkpoints" / (directory / "checkpoints" / "LATEST").read_text().strip()
    cut = read_checkpoint(latest)
    assert cut.step == summary["steps"] == done < STEPS
    groups = summary["groups"]
    assert groups["admitted"] == cut.ledger.admitted == done * BATCH + groups["dropped"] + len(cut.ledger.entries)
    return done


def assert_whole(directory: Path) -> None:
    """Every group was trained once, as in an undisturbed run."""
    assert json.loads((directory / "summary.json").read_text())["status"] == "completed"
    found = audit(directory)
    assert found.is_balanced
    assert collections.Counter(found.committed.values()) == dict.fromkeys(range(STEPS), BATCH)
    assert set(found.committed) == set(range(STEPS * BATCH))


def command(*arguments: str) -> list[str]:
    return standin_command("night", "--steps", str(STEPS), "--set", "checkpoint_every=5", *arguments)


def test_ctrl_c_finishes_the_step(nursery: Any, tmp_path: Path, temporary: Path):
    with start(command(), tmp_path, temporary, "night", SOLON_STANDIN=SLOW) as child:
        child.wait_for_step(3)
        child.process.send_signal(signal.SIGINT)
        assert child.end() == 0, child.output[-3000:]
    assert assert_stopped(child.directory) >= 3


def test_sigterm_finishes_the_step_and_resume_reaches_the_same_groups(nursery: Any, tmp_path: Path, temporary: Path):
    with start(command(), tmp_path, temporary, "night", SOLON_STANDIN=SLOW) as child:
        child.wait_for_step(3)
        child.process.send_signal(signal.SIGTERM)
        assert child.end() == 0, child.output[-3000:]
    assert assert_stopped(child.directory) >= 3
    with start(command("--resume"), tmp_path, temporary, "night", SOLON_STANDIN="{}") as child:
        assert child.end() == 0, child.output[-3000:]
    assert_whole(child.directory)


EVALUATED = ("--set", "evaluate.evaluator=nursery", "--set", "evaluate.prompts=nursery:heldout_prompts")


def test_sigterm_in_the_last_evaluation_is_answered_at_once_and_resume_evaluates(
    nursery: Any, tmp_path: Path, temporary: Path
):
    slow = json.dumps({"seconds": 0.05, "answers_s": 300})
    with start(command(*EVALUATED), tmp_path, temporary, "night", SOLON_STANDIN=slow) as child:
        child.wait_for(lambda: any(e["event"] == "checkpoint" and e["step"] == STEPS for e in events(child.directory)))
        child.process.send_signal(signal.SIGTERM)
        assert child.end(60) == 0, child.output[-3000:]
    assert (child.summary["status"], child.summary["steps"], child.summary["eval"]["after"]) == ("stopped", STEPS, None)
    latest = (child.directory / "checkpoints" / "LATEST").read_text().strip()
    assert read_checkpoint(child.directory / "checkpoints" / latest).step == STEPS
    with start(command(*EVALUATED, "--resume"), tmp_path, temporary, "night", SOLON_STANDIN="{}") as child:
        assert child.end() == 0, child.output[-3000:]
    assert child.summary["eval"]["after"] is not None
    assert_whole(child.directory)


def test_a_refused_resume_leaves_the_run_as_it_was(nursery: Any, tmp_path: Path, temporary: Path):
    quick = json.dumps({"seconds": 0.05})
    with start(command(), tmp_path, temporary, "night", SOLON_STANDIN=quick) as child:
        assert child.end() == 0, child.output[-3000:]
    kept = {name: (child.directory / name).read_bytes() for name in ("config.json", "summary.json")}
    assert child.summary["status"] == "completed"
    # Refused before anything starts, and refused only by the learner.
    refused = [("--set", "learn.lora.r=4"), ("--steps", str(STEPS + 1))]
    for settings in refused:
        learner = json.dumps({"learner": "refuses"})
        with start(command("--resume", *settings), tmp_path, temporary, "night", SOLON_STANDIN=learner) as child:
            assert child.end() == 2, child.output[-3000:]
        assert {name: (child.directory / name).read_bytes() for name in kept} == kept
    assert "learn.lora was None, is " in child.output or "learn.lora.r was not set, is 4" in child.output


def events(directory: Path) -> list[dict[str, Any]]:
    return lines(directory / "events.jsonl")


def test_a_stopped_job_ends_in_order_and_resumes_when_it_is_submitted_again(
    nursery: Any, head: dict[str, str], tmp_path: Path
):
    job = Job(head, tmp_path)
    job.submit("first", SOLON_STANDIN=SLOWER)
    wait_for(lambda: len(lines(job.directory / "metrics.jsonl")) >= 2, job.log)
    job.ray("job", "stop", "first")
    # Ray's own status depends on which side is quicker; the run's does not.
    wait_for(lambda: job.status("first") in ("STOPPED", "SUCCEEDED"), job.log)
    assert assert_stopped(job.directory) >= 2
    job.submit("second", SOLON_STANDIN="{}")  # no --resume: a job with a name continues by itself
    wait_for(lambda: job.status("second") not in ("PENDING", "RUNNING"), job.log)
    assert job.status("second") == "SUCCEEDED", job.log()
    assert_whole(job.directory)
    assert ask(head, "ray.util.list_named_actors(all_namespaces=True)") == "[]"


def test_a_driver_whose_node_is_drained_stops_in_order(nursery: Any, head: dict[str, str], tmp_path: Path):
    variables = {**head, "RAY_ADDRESS": head["GCS"]}
    child_environment = {k: v for k, v in variables.items() if os.environ.get(k) != v}
    child_environment |= {"SOLON_STANDIN": SLOWER, "SOLON_ALLOW_OPEN_CLUSTER": "1"}
    with start(command(), tmp_path, tmp_path / "t", "night", **child_environment) as child:
        child.wait_for_step(1)
        drain(variables)
        assert child.end() == 0, child.output[-3000:]
    assert_stopped(child.directory)
    assert child.summary["stopped_by"]["kind"] == "draining"
    assert any(event["event"] == "draining" for event in lines(child.directory / "events.jsonl"))


class Job:
    """Submitted runs that write into one folder."""

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        self._variables = variables
        self._folder = folder
        self.directory = folder / "night"
        self.name = ""

    def submit(self, name: str, **settings: str) -> None:
        self.name = name
        variables = {"SOLON_RUNS": str(self._folder), "SOLON_ALLOW_OPEN_CLUSTER": "1", **settings}
        runtime = json.dumps({"env_vars": variables})
        deadline = time.monotonic() + 60
        while True:  # the dashboard answers a few seconds after the head is up
            done = self.ray("job", "submit", "--no-wait", "--submission-id", name, "--working-dir", str(ROOT),
                            "--runtime-env-json", runtime, "--", *command())  # fmt: skip
            if done.returncode == 0:
                return
            assert time.monotonic() < deadline, done.stdout + done.stderr

    def status(self, name: str) -> str:
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(self._variables["RAY_API_SERVER_ADDRESS"])
        return str(client.get_job_status(name))

    def log(self) -> str:
        return self.ray("job", "logs", self.name).stdout[-3000:]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, *arguments], cwd=ROOT, env=self._variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip


def drain(variables: dict[str, str]) -> None:
    """The effect of a spot notice or a scale-down on the only node."""
    node = ask(variables, "ray.nodes()[0]['NodeID']")
    subprocess.run(
        [RAY, "drain-node", "--address", variables["RAY_ADDRESS"], "--node-id", node,
         "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice",
         "--deadline-remaining-seconds", "120"],
        env=variables, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip


def ask(variables: dict[str, str], question: str) -> str:
    """The answer that a client of the cluster gets."""
    code = f"import ray; ray.init(address={variables['GCS']!r}, logging_level='ERROR'); print({question})"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60,
                          check=True)  # fmt: skip
    return done.stdout.splitlines()[-1]


def wait_for(condition: Any, log: Any, timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.3)
