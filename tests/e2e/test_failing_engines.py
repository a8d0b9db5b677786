"""An engine that raises while it computes, in a whole run: it is replaced, and the run ends well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NURSERY, environment

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(400)]

SCRIPT = """\
import sys
from pathlib import Path
import ray, torch
from actors.rollout import RolloutShell
from actors.learner import LearnerShell
from cluster.pools.learner import LearnerRole
from cluster.pools.rollout import RolloutRole

FOLDER = Path(sys.argv.pop(1))

def once(name):
    "True in the first process that asks."
    try:
        (FOLDER / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

class FailingRollout(RolloutShell):
    "The forward pass raises once, in the middle of the run."
    async def load_weights(self, weights):
        receipt = await super().load_weights(weights)
        if weights.version == 1 and once("engine"):
            engine = self._runner._engine
            runner = engine._core.model_executor.driver_worker.worker.model_runner
            def fail(*args, **kwargs):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            runner.execute_model = fail
        return receipt

class FailingLearner(LearnerShell):
    "One backward pass raises."
    def step(self, step, *payloads):
        if step == 2 and once("learner"):
            def fail(*args, **kwargs):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            self._learner._updates = fail
        yield from super().step(step, *payloads)

options = {"max_restarts": 0, "max_task_retries": 0}
from solon.cli.main import main
main(roles={
    "rollout": RolloutRole(ray.remote(**options)(FailingRollout)),
    "learner": LearnerRole(ray.remote(**options, concurrency_groups={"signs": 1, "writes": 1})(FailingLearner)),
})
"""


def test_an_engine_and_a_learner_that_raise_during_computation_are_replaced(nursery: Any, tmp_path: Path):
    (tmp_path / "failing.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "failing.py"), str(tmp_path), "train", str(NURSERY), "--name", "run",
         "--steps", "4", "--set", "checkpoint_every=2"],
        cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    directory = tmp_path / "runs" / "run"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["weights"]["attested"] == summary["steps"] == 4
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    causes = {event["worker"]: event["cause"] for event in events if event["event"] == "worker_lost"}
    assert "failed while decoding: OutOfMemoryError: CUDA out of memory" in causes["rollout-0"]
    assert "max_running" in causes["rollout-0"]
    assert "the learner failed while training step 2: RuntimeError: CUDA error" in causes["learner"]
    assert {event["worker"] for event in events if event["event"] == "worker_recovered"} == {"rollout-0", "learner"}
    assert [event["same_weights"] for event in events if event["event"] == "learner_trained_again"] in ([], [True])
