"""Starts the workers of every pool of a run on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from cluster.placement.placement import demands_of
from cluster.placement.waiting import Waiting
from cluster.pools import known_roles
from cluster.pools.base import PoolContext, Role
from cluster.ray_session.session import ClusterInfo as ClusterInfo
from cluster.ray_session.session import cluster as cluster
from cluster.ray_session.worker_path import refuse_foreign_code
from solon.clock import Clock
from solon.constitution.constitution import Constitution
from solon.errors import ForeignCodeError, RunFailedError, first_cause
from solon.feedback.prompting.prompts import NO_SECRET, TEMPLATES
from solon.feedback.prompting.secret import nonce_secret
from solon.pipeline.pool import Pool
from solon.recovery.guard import Guard, start_limit
from solon.recovery.startup import start


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    """The workers of one pool, built and warm, each with a guard that replaces it after a loss.

    Rollout engines and judges may join and leave during training: `await workers["rollout"].pool.add(lane)`.
    """

    spec: PoolSpec
    lanes: Collection[Any]
    started: list[Any]
    """What the first start of each worker returned."""

    def take_started(self) -> list[Any]:
        """`started`, which is empty afterwards: references to payloads would keep them for the whole run."""
        started = list(self.started)
        self.started.clear()
        return started

    @property
    def lane(self) -> Any:
        """The only worker, or the first one."""
        return next(iter(self.lanes))

    @property
    def pool(self) -> Pool[Any]:
        """The lanes of a pool that workers may join and leave."""
        assert isinstance(self.lanes, Pool), f"{self.spec.role}: workers of this role do not join or leave"
        return self.lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSet:
    """The workers of a run, by pool. `workers["judge"].lanes`"""

    pools: Mapping[str, WorkerPool]

    def __getitem__(self, name: str) -> WorkerPool:
        return self.pools[name]

    def of_role(self, role: str) -> WorkerPool:
        """The only pool of a role, or the first one."""
        return next(pool for pool in self.pools.values() if pool.spec.role == role)

    @property
    def guards(self) -> list[Guard]:
        return [lane.guard for pool in self.pools.values() for lane in pool.lanes]

    async def close(self) -> None:
        """From now on no worker is replaced."""
        await asyncio.gather(*(guard.close() for guard in self.guards))


class Launcher:
    """Creates the actors, then starts all of them concurrently.

    `on_ready` is called with the name of each actor that is up; `emit` receives losses and replacements of workers.
    """

    def __init__(
        self,
        run: RunFile,
        constitution: Constitution,
        *,
        run_name: str,
        emit: Callable[..., None],
        checkpoint: str = "",
        clock: Clock | None = None,
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        """checkpoint: the directory that the learner starts from; empty: the unchanged policy. clock: measures
        deadlines. roles: factories of the workers, in place of those in `cluster/pools/`."""
        self._run = run
        self._roles = known_roles() | dict(roles or {})
        self._context = PoolContext(
            run=run,
            constitution=constitution,
            namespace=f"solon-{run_name}",
            # One secret for all runs of this user, so that they share cached verdicts. It is not part of the run file,
            # because every run writes its run file.
            secret=nonce_secret() if TEMPLATES[run.feedback.template].fenced else NO_SECRET,
            checkpoint=checkpoint,
            emit=emit,
            clock=clock or Clock(),
        )
        self._pools = {name: pool for name, pool in run.workers.items() if pool.size}

    async def launch(
        self, *, on_ready: Callable[[str], None], say: Callable[[str], None] = lambda line: None
    ) -> WorkerSet:
        """`say` receives every few seconds which actors have no node yet. Raises InputError for what the models' files
        make impossible, RunFailedError for an actor that dies, finds no node in time, or is not ready in time after."""
        context, pools = self._context, self._pools
        workers = {name: self._roles[pool.role].workers(pool, context) for name, pool in pools.items()}
        waiting = Waiting(demands_of(self._run), say=say, emit=context.emit)
        reporting = asyncio.ensure_future(waiting.report())
        try:
            async with asyncio.TaskGroup() as group:
                starting = {
                    name: [group.create_task(self._start(worker, pools[name], waiting, on_ready)) for worker in some]
                    for name, some in workers.items()
                }
        except ExceptionGroup as failures:
            cause = first_cause(failures)
            if isinstance(cause, ForeignCodeError):
                await asyncio.to_thread(refuse_foreign_code)
            raise cause from None
        finally:
            reporting.cancel()
        started = {name: [task.result() for task in tasks] for name, tasks in starting.items()}
        return WorkerSet(pools={name: self._supervised(pools[name], workers[name], started[name]) for name in pools})

    async def another(self, pool: WorkerPool, name: str, *, place_within_s: float | None = None) -> Any:
        """One more worker for a pool, with a name of its own: started, guarded, and not yet in the pool.

        place_within_s: time in which it must get a place on a node; None: `recovery.node_timeout_s`.

        await pool.pool.add(await launcher.another(pool, "rollout-3"))

        Raises as `launch` does, after its process has ended.
        """
        context, role = self._context, self._roles[pool.spec.role]
        spec = pool.spec.model_copy(update={"size": 1}).called(name, pool.spec.section, is_numbered=False)
        (demand,) = [d for d in demands_of(self._run) if d.name == pool.spec.worker_names[0]]
        waiting = Waiting([replace(demand, name=name)], say=lambda line: None, emit=context.emit)
        (worker,) = role.workers(spec, context)
        try:
            await self._start(worker, spec, waiting, on_ready=lambda name: None, place_within_s=place_within_s)
        except BaseException:
            worker.end()
            raise
        (lane,) = role.supervised([worker], context)
        return lane

    def names(self) -> list[str]:
        """Every actor that `on_ready` will report."""
        return [name for pool in self._pools.values() for name in pool.worker_names]

    def _supervised(self, pool: PoolSpec, workers: Sequence[Any], started: Sequence[Any]) -> WorkerPool:
        role = self._roles[pool.role]
        lanes = role.together(role.supervised(workers, self._context))
        return WorkerPool(spec=pool, lanes=lanes, started=list(started))

    async def _start(
        self,
        worker: Any,
        pool: PoolSpec,
        waiting: Waiting,
        on_ready: Callable[[str], None],
        *,
        place_within_s: float | None = None,
    ) -> Any:
        """What the first start of a worker returns."""
        recovery, context = self._run.recovery, self._context
        if place_within_s is not None:
            recovery = recovery.model_copy(update={"node_timeout_s": place_within_s})
        limit = start_limit(recovery, context.clock)

        def placed() -> None:
            limit.placed()
            waiting.placed(worker.name)

        arguments = self._roles[pool.role].start_arguments(context)
        try:
            result = await limit.within(start(worker, *arguments, emit=context.emit, waits=limit.waits, placed=placed))
        except TimeoutError:
            if not limit.has_place:
                if place_within_s is not None:
                    raise await waiting.failure(place_within_s, setting="") from None
                raise await waiting.failure(recovery.node_timeout_s) from None
            raise RunFailedError(f"{worker.name} {limit.missed}") from None
        on_ready(worker.name)
        return result
