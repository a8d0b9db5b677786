"""Elasticity of a run on Ray: its pools with their bounds, and which of its workers are on machines that go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import state as ray_state

from cluster.launch import Launcher, WorkerPool
from cluster.saving import Saver
from cluster.session import RunSession
from solon.elasticity.controller import Elasticity
from solon.elasticity.decide import Bounds
from solon.elasticity.elastic_pool import ElasticPool
from solon.errors import WorkerLostError
from solon.recovery.supervised_lanes import SupervisedLane, SupervisedLearner


def elasticity_of(session: RunSession, policy: str, judge: str) -> Elasticity:
    """The elasticity of a run. policy, judge: its pools that generate and label. Runs within the loop of the run."""
    run, workers, totals = session.run, session.workers, session.totals
    emit = session.recorder.event

    def lanes() -> Iterable[SupervisedLane]:
        return [lane for name in workers.pools for lane in workers[name].lanes]

    return Elasticity(
        run.elasticity,
        [_elastic(session.launcher, workers[name], emit) for name in dict.fromkeys((policy, judge))],
        learned=lambda: (totals.steps, totals.busy.seconds("learn")),
        batch_groups=run.ledger.batch_groups,
        in_flight=max(1, run.staleness.target_staleness) * run.ledger.batch_groups,
        emit=emit,
        drained=lambda: asyncio.to_thread(drained_workers, list(lanes())),
        clock=session.clock,
    )


def _elastic(launcher: Launcher, workers: WorkerPool, emit: Callable[..., None]) -> ElasticPool[Any]:
    spec = workers.spec

    async def start(name: str, place_within_s: float) -> Any:
        return await launcher.another(workers, name, place_within_s=place_within_s)

    bounds = Bounds(least=spec.size, most=max(spec.size, spec.max_size))
    return ElasticPool(spec.name, workers.pool, bounds, start=start, emit=emit)


class LearnerMove:
    """Moves a learner whose machine goes: `if move.is_due(): await saver.save(step); await move.after(saver)`, between
    two steps."""

    def __init__(self, learner: SupervisedLearner, elasticity: Elasticity) -> None:
        self._learner = learner
        self._elasticity = elasticity
        self._is_due = self._is_done = False

    def is_due(self) -> bool:
        """Whether the state is to be saved now, because the learner's machine goes."""
        concerned = self._elasticity.draining.concerns(self._learner.name)
        # Once moved, it is not moved again before it was seen on a machine that stays.
        self._is_done = self._is_done and concerned
        self._is_due = concerned and not self._is_done
        return self._is_due

    async def after(self, saver: Saver) -> None:
        """A checkpoint of this moment was begun. If the move is due: wait until it is complete, and start the learner
        from it on another machine. Ranks share a placement group, which keeps its machine until that has gone: they
        are moved by its end."""
        if not self._is_due:
            return
        incarnation = self._learner.incarnation
        await saver.settled()
        self._is_due, self._is_done = False, True
        if len(_actors(self._learner)) == 1:
            # One that was lost meanwhile is being replaced already.
            self._learner.lost(WorkerLostError("its machine is about to go"), incarnation)


def drained_workers(lanes: Iterable[SupervisedLane]) -> Mapping[str, float | None]:
    """Seconds until the machine of each worker goes, of those whose machine is drained; None: it is not known when. May
    block. Empty when Ray does not answer, and on the driver's own machine, which ends the run."""
    found: dict[str, float | None] = {}
    with suppress(Exception):  # failing to ask is no reason to end a run
        # Ray's own training loop asks the same way; there is no public name for it.
        deadlines_ms = dict(ray_state.get_draining_nodes())
        deadlines_ms.pop(ray.get_runtime_context().get_node_id(), None)
        if deadlines_ms:
            for lane in lanes:
                nodes = {ray_state.actor_table(actor._actor_id.hex())["Address"]["NodeID"] for actor in _actors(lane)}
                for node in nodes & deadlines_ms.keys():
                    until = deadlines_ms[node]
                    found[lane.name] = max(0.0, until / 1000 - time.time()) if until else None
    return found


def _actors(lane: SupervisedLane) -> list[Any]:
    """The Ray actors of a worker: one, or the ranks of a learner."""
    actor = lane.process.actor
    return list(actor) if isinstance(actor, list | tuple) else [actor]
