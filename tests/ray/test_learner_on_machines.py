"""A learner of four ranks on two machines: it trains what one process trains, and moves when a machine is lost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ray.machines_apart import machines

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

STEPS = 3
SAID = "said: "
POOL = {"solon.io/pool": "far"}


def test_ranks_on_two_machines_publish_what_one_process_publishes_and_survive_the_loss_of_one(tmp_path: Path):
    with machines(num_cpus=1) as apart:
        far = [apart.add("far", num_cpus=1) for _ in range(3)]
        with subprocess.Popen(
            [*apart.inside, sys.executable, "-m", "tests.ray.test_learner_on_machines", str(tmp_path)],
            env={**apart.environment, **apart.joining}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            assert child.stdin is not None
            try:
                places = said(child)
                assert places[::2] == places[1::2], "neighbours share a machine"
                lost, kept = (one for one in far if one.address in places[::2])
                lost.kill()
                child.stdin.write("\n")
                child.stdin.flush()
                told = said(child)
            finally:
                child.kill()
    assert told["places"][::2] == told["places"][1::2]
    assert kept.address in told["places"]
    assert lost.address not in told["places"]
    assert len(set(told["places"])) == 2
    assert told["trained_again"] == [{"steps": 2, "same_weights": True}]
    assert told["lost"] == ["learner"]
    assert told["largest_difference"] <= 1e-5


def said(child: subprocess.Popen[str]) -> Any:
    """What it says next, between messages of Ray."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(SAID):
            return json.loads(line.removeprefix(SAID))
    raise AssertionError("the child ended")


def places_of(made: Any) -> list[str]:
    """The addresses of the machines on which its ranks run."""
    import ray
    from ray._private.state import state

    tables = [state.actor_table(actor._actor_id.hex()) for actor in made.worker.actors]
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return [nodes[table["Address"]["NodeID"]] for table in tables]


async def child(folder: Path) -> None:
    """On the head's machine: trains with one process, then with ranks on two machines, of which one is lost."""
    from tests.ray.test_learner_group import learner, tensors_of
    from tests.unit.learner_builders import write_llama

    (folder / "llama").mkdir()
    model = write_llama(folder / "llama")
    (folder / "alone").mkdir()
    async with learner(folder / "alone", model, ranks=1) as made:
        await made.start()
        for step in range(STEPS):
            _, _, weights = await made.lane.step(made.lease(step))
        alone = tensors_of(weights)
    async with learner(folder, model, ranks=4, num_nodes=2, labels=POOL) as made:
        await made.start()
        leases = [made.lease(step) for step in range(STEPS)]
        for lease in leases[:2]:
            await made.lane.step(lease)
        print(SAID + json.dumps(places_of(made)), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        _, _, weights = await made.lane.step(leases[2])
        together = tensors_of(weights)
        differences = [
            float(np.linalg.norm(value - together[name]) / np.linalg.norm(value)) for name, value in alone.items()
        ]
        told = {
            "places": places_of(made),
            "trained_again": made.told("learner_trained_again"),
            "lost": [one["worker"] for one in made.told("worker_lost")],
            "largest_difference": max(differences),
        }
        print(SAID + json.dumps(told), flush=True)


if __name__ == "__main__":
    import ray

    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        asyncio.run(child(Path(sys.argv[1])))
    finally:
        ray.shutdown()
