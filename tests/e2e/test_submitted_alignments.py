"""An alignment file, and a run that finds no place, through `solon submit` on a cluster that requires a token. Real
engines and learners."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import TOKEN, solon_command
from tests.e2e.standin_runs import audit, lines
from tests.e2e.test_submission import Client

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(500)]

RLAIF_STEPS = 60
"""Enough that a command which stops them arrives in time."""
ALIGN = f"""
policy = "nursery:policy"
judge = "nursery:judge"
prompts = "nursery:train_prompts"
constitution = "nursery:constitution"

[label]
feedback = {{ template = "compact" }}
write = {{ max_tokens = 24, answers = 4 }}

[[stages]]
type = "preferences"
max_prompts = 24

[[stages]]
type = "dpo"
learn = {{ learning_rate = 5e-4, epochs = 40 }}

[[stages]]
type = "rlaif"
[stages.run]
steps = {RLAIF_STEPS}
rollout = {{ group_size = 4, max_tokens = 24, max_model_len = 128, num_cpus = 0.5 }}
judging = {{ max_model_len = 256, num_cpus = 0.5 }}
ledger = {{ batch_groups = 4 }}
learn = {{ objective = "group_relative", learning_rate = 4e-4, num_cpus = 0.5 }}
"""
HOLDER = """
import ray, sys, time
ray.init(log_to_driver=False, logging_level="ERROR")
class Held:
    def ping(self): pass
one = ray.remote(num_cpus=1.5)(Held).remote()
ray.get(one.ping.remote())
print("held", flush=True)
sys.stdin.read()
"""


class RealClient(Client):
    """It submits real workers."""

    def command(self, *arguments: str) -> list[str]:
        return solon_command(*arguments)


@pytest.fixture
def client(nursery: Any, token_head: dict[str, str], tmp_path: Path) -> RealClient:
    return RealClient(token_head, tmp_path)


def stages_made(runs: Path) -> list[str]:
    return [path.stem for path in (runs / "artifacts").glob("*.json")]


def test_an_alignment_is_followed_stopped_in_order_and_resumed_without_making_a_finished_stage_again(
    client: RealClient,
):
    (client.folder / "align.toml").write_text(ALIGN)
    command = ["submit", "align.toml", "--address", client.url, "--runs", str(client.runs), "--grace", "60"]
    stop_when(client, [*command, "--name", "steps"], "solon-steps-1", lambda: bool(stages_made(client.runs)))
    made = {name: (client.runs / "artifacts" / f"{name}.json").stat().st_mtime for name in stages_made(client.runs)}
    assert 1 <= len(made) < 3

    # Then in the middle of the reinforcement learning, which is a run with checkpoints of its own.
    again = ["jobs", "resume", "solon-steps-1", "--address", client.url]
    stop_when(client, again, "solon-steps-2", lambda: steps_of_run(client.runs) >= 2)
    assert len(stages_made(client.runs)) == 2
    trained = steps_of_run(client.runs)
    assert trained < RLAIF_STEPS

    resumed = client.jobs("resume", "solon-steps-2")
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr
    assert "solon-steps-3 succeeded" in resumed.stdout
    assert "Traceback" not in resumed.stdout
    assert len(stages_made(client.runs)) == 3
    for name, when in made.items():
        assert (client.runs / "artifacts" / f"{name}.json").stat().st_mtime == when, "made twice"
    (run,) = (client.runs / "steps" / "stages").glob("03-rlaif.records/train")
    (event,) = (event for event in lines(run / "events.jsonl") if event["event"] == "resumed")
    assert event["step"] == trained, "it was stopped with a checkpoint and continued from there"
    assert audit(run).is_balanced
    client.assert_nothing_is_left()


def steps_of_run(runs: Path) -> int:
    """Steps of the run of the third stage, while it is made."""
    return max((len(lines(path)) for path in (runs / "steps" / "stages").glob("03-rlaif.kept-*/train/metrics.jsonl")),
               default=0)  # fmt: skip


def stop_when(client: Client, command: list[str], job: str, condition: Callable[[], bool]) -> None:
    """Follows a job, and stops it in order once it has come so far."""
    with client.running(*command) as child:
        deadline = time.monotonic() + 240
        while not condition():
            assert child.poll() is None, child.said()  # type: ignore[attr-defined]
            assert time.monotonic() < deadline, child.said()  # type: ignore[attr-defined]
            time.sleep(0.2)
        began = time.monotonic()
        stopped = client.jobs("stop", job, "--json")
        assert stopped.returncode == 0, stopped.stderr
        assert "it was killed" not in stopped.stderr
        assert time.monotonic() - began < 60
        assert child.wait(timeout=60) in (0, 130), child.said()  # type: ignore[attr-defined]
        said = child.said()  # type: ignore[attr-defined]
    assert "Traceback" not in said
    assert TOKEN not in said
    assert "Creating a file package" not in said, "Ray's client logs on the terminal"
    client.assert_nothing_is_left()


@contextmanager
def others(client: Client, token_head: dict[str, str]) -> Iterator[None]:
    """Another driver holds three quarters of the cluster."""
    variables = {**client.variables, "RAY_ADDRESS": token_head["GCS"], "RAY_AUTH_MODE": "token"}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield
    finally:
        child.communicate("", timeout=60)


def test_a_submitted_run_whose_ranks_find_no_place_ends_with_the_table_before_anything_is_loaded(
    client: RealClient, token_head: dict[str, str]
):
    settings = ["rollout.num_cpus=0.6", "judging.num_cpus=0.6", "learn.num_ranks=2", "learn.num_cpus=0.35"]
    settings += ["recovery.node_timeout_s=8", "evaluate.evaluator=''", "evaluate.prompts=''"]
    command = ["submit", "run.toml", "--address", client.url, "--runs", str(client.runs), "--steps", "2"]
    command += [part for one in settings for part in ("--set", one)]
    with others(client, token_head):
        done = client.run(*command, "--name", "waits")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr
    assert "no place for judge-0, learner, rollout-0 within recovery.node_timeout_s = 8 s" in done.stdout
    assert "see with `ray status` what has the nodes" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert any(row[:5] == ["1", "x", "learn", "0.7", "CPU"] for row in rows), done.stdout
    assert any("learner asks 0.7 CPU" in line for line in done.stdout.splitlines() if "waiting for 3 of 3" in line)
    assert "Traceback" not in done.stdout + done.stderr
    client.assert_nothing_is_left()

    refused = client.run(*command, "--name", "never", "--set", "learn.num_ranks=4", "--set", "learn.num_cpus=1")
    assert refused.returncode == 2, refused.stdout[-3000:] + refused.stderr
    assert "the run needs 5.2 CPU(s)" in refused.stdout
    assert not (client.runs / "never").exists()
    client.assert_nothing_is_left()
