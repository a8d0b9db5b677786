"""The base of every role: it makes workers and gives each a guard that replaces it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from solon.clock import Clock
from solon.constitution.constitution import Constitution
from solon.host.allocator import KEEP_FREED_MEMORY, RETURN_FREED_MEMORY
from solon.pipeline.pool import Pool
from solon.recovery.guard import Guard
from solon.recovery.supervised_lanes import PoolLane

Spawn = Callable[[int], Any]
"""Makes an actor; the number counts its predecessors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolContext:
    """What a role needs to know of the run for which it makes workers."""

    run: RunFile
    constitution: Constitution
    namespace: str
    """Of the run's actors."""
    secret: bytes
    """For the nonces in judge prompts."""
    checkpoint: str
    """The directory that the learner starts from; empty: the unchanged policy."""
    emit: Callable[..., None]
    clock: Clock
    shared: dict[str, Any] = field(default_factory=dict)
    """Values that workers of several pools share."""

    def spawner(
        self, actor: Any, pool: PoolSpec, name: str, *arguments: Any, threads: int, trains: bool = False, **named: Any
    ) -> Spawn:
        """Returns a function that makes the actor of a worker in its pool's placement, as often as needed. trains: it
        allocates the same large tensors at every step."""

        def spawn(made: int) -> Any:
            options = self.options(pool, name, made, threads=threads, trains=trains)
            return actor.options(**options).remote(*arguments, name=name, **named)

        return spawn

    def options(self, pool: PoolSpec, name: str, made: int, *, threads: int, trains: bool = False) -> dict[str, Any]:
        """Ray's options for an actor."""
        placement = pool.placement
        return {
            # The name of a lost actor stays taken until Ray has removed it.
            "name": f"{name}.{made}" if made else name,
            "namespace": self.namespace,
            "num_cpus": placement.num_cpus,
            "num_gpus": placement.num_gpus,
            "label_selector": dict(placement.labels),
            "runtime_env": worker_environment(
                threads, on_gpu=placement.num_gpus > 0, trains=trains, ranks=pool.num_ranks
            ),
        }

    def guard(self, worker: Any) -> Guard:
        """Replaces the worker after a loss."""
        return Guard(worker, self.run.recovery, emit=self.emit, clock=self.clock)


class Role(ABC):
    """One kind of worker. A class in a new file of this folder is a new role.

    A worker has a `name` and the methods of `solon.recovery.startup.Startable`; the result of `supervised` has a
    `guard`.
    """

    role: ClassVar[str] = ""
    """The name by which pools refer to it."""
    is_once: ClassVar[bool] = False
    """A run has at most one pool of it."""
    is_single: ClassVar[bool] = False
    """A pool of it has one worker."""

    def __init__(self, actor: Any = None) -> None:
        """actor: the Ray actor class of the workers; None: the role's own."""
        self._actor = actor

    @abstractmethod
    def workers(self, pool: PoolSpec, context: PoolContext) -> Sequence[Any]:
        """The workers of a pool, not started yet, in the order of `pool.worker_names`."""

    @abstractmethod
    def supervised(self, workers: Sequence[Any], context: PoolContext) -> list[Any]:
        """The same, started, each with a guard."""

    def start_arguments(self, context: PoolContext) -> tuple[Any, ...]:
        """The arguments of a worker's first start."""
        return ()

    def together(self, lanes: Sequence[Any]) -> Collection[Any]:
        """The holder of the lanes: a pool that may change size, in which the run continues without a lane while others
        are left. Lanes that are no `PoolLane`, as the learner's, are returned unchanged."""
        return Pool(lanes) if all(isinstance(lane, PoolLane) for lane in lanes) else tuple(lanes)


def worker_environment(threads: int, *, on_gpu: bool, trains: bool = False, ranks: int = 1) -> dict[str, Any]:
    """Environment of a worker process: its share of the threads, no progress bars in its log, no GPU that it did not
    request. trains: it keeps the memory that it frees, for the same tensors of the next step, unless several ranks
    share the work to save memory."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Empty means unset to Python: workers write bytecode, so the next start imports twice as fast.
        "PYTHONDONTWRITEBYTECODE": "",
        # A library that starts a process in it does not import from the folder in which the machine's Ray started.
        "PYTHONSAFEPATH": "1",
    }
    if trains and not on_gpu and "GLIBC_TUNABLES" not in os.environ:
        variables["GLIBC_TUNABLES"] = KEEP_FREED_MEMORY if ranks == 1 else RETURN_FREED_MEMORY
    if not on_gpu:
        # Ray hides devices from an actor that requests none only when told to; where
        # RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES is set it never does.
        variables |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {"env_vars": variables}
