"""A machine that is cut off and returns: the learner and an engine on it work on, and nobody listens to them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from solon.checkpoints.folder import CheckpointFolder
from tests.e2e.standin_runs import Child, audit, lines, standin_command, start
from tests.ray.machines_apart import Machine, machines

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

STEPS = 70
POOL = "solon.io/pool"


def told(child: Child, name: str) -> list[dict[str, Any]]:
    return [event for event in lines(child.directory / "events.jsonl") if event["event"] == name]


def gone(pids: set[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: PTH110


def test_a_machine_that_was_cut_off_and_returns_trains_nothing_twice_and_its_workers_end(tmp_path: Path):
    settings = [f'{section}.labels={{"{POOL}" = "far"}}' for section in ("rollout", "learn")]
    settings += [f"{section}.num_cpus=1" for section in ("rollout", "learn", "judging")]
    settings += [f'judging.labels={{"{POOL}" = "!far"}}', "checkpoint_every=3", "recovery.backoff_s=0"]
    command = standin_command("run", "--steps", str(STEPS))
    for setting in settings:
        command += ["--set", setting]
    standin = json.dumps({"seconds": 0.3, "asks": True, "learner": "bulky"})
    with machines(num_cpus=1) as apart:
        far = [apart.add("far", num_cpus=2) for _ in range(2)]
        with start(
            [*apart.inside, *command], tmp_path, tmp_path / "t", "run", SOLON_STANDIN=standin, **apart.joining
        ) as child:
            child.wait_for_step(4)
            home = _home_of(far, "Bulky")
            zombies = home.pids("ray::Bulky") | home.pids("ray::Patient")
            home.cut()
            child.wait_for(lambda: bool(told(child, "worker_recovered")), timeout_s=120)
            before = len(lines(child.directory / "metrics.jsonl"))
            child.wait_for_step(before + 2)
            assert any(not gone({pid}) for pid in zombies), "its workers should not have noticed"
            home.heal()
            child.wait_for(lambda: gone(zombies), timeout_s=90)
            assert child.end(timeout_s=150) == 0, child.output[-3000:]
        lost = [event["worker"] for event in told(child, "worker_lost")]
        assert "learner" in lost
        assert len(lost) == len(set(lost)), "each was lost once"
        assert (child.summary["status"], child.summary["steps"]) == ("completed", STEPS)
        found = audit(child.directory)
        assert found.is_balanced
        assert set(found.committed.values()) == set(range(STEPS))
        assert all(event["same_weights"] for event in told(child, "learner_trained_again"))
        damaged: list[str] = []
        last = CheckpointFolder(child.directory / "checkpoints").last(damaged=damaged)
        assert last is not None
        assert (last.step, damaged) == (STEPS, [])


def _home_of(machines: list[Machine], kind: str) -> Machine:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for machine in machines:
            if machine.pids(f"ray::{kind}"):
                return machine
    raise AssertionError(f"no {kind} on any machine")
