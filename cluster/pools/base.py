"""What every role of a pool does: make its workers, and give each a guard that replaces it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from solon.clock import Clock
from solon.constitution.constitution import Constitution
from solon.pipeline.pool import Pool
from solon.recovery.guard import Guard
from solon.recovery.supervised_lanes import PoolLane

Spawn = Callable[[int], Any]
"""Makes an actor; the number says how many there were before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolContext:
    """What a role knows of the run whose workers it makes."""

    run: RunFile
    constitution: Constitution
    namespace: str
    """Of the run's actors."""
    secret: bytes
    """Of the nonces in what judges are asked."""
    checkpoint: str
    """The directory that the learner starts from; empty: the policy as it is."""
    emit: Callable[..., None]
    clock: Clock
    shared: dict[str, Any] = field(default_factory=dict)
    """What workers of several pools have in common."""

    def spawner(self, actor: Any, pool: PoolSpec, name: str, *arguments: Any, threads: int, **named: Any) -> Spawn:
        """Makes the actor of a worker where the pool is placed, again and again."""

        def spawn(made: int) -> Any:
            options = self.options(pool, name, made, threads=threads)
            return actor.options(**options).remote(*arguments, name=name, **named)

        return spawn

    def options(self, pool: PoolSpec, name: str, made: int, *, threads: int) -> dict[str, Any]:
        """Ray's options of an actor."""
        placement = pool.placement
        return {
            # The name of a lost actor is taken until Ray has forgotten it.
            "name": f"{name}.{made}" if made else name,
            "namespace": self.namespace,
            "num_cpus": placement.num_cpus,
            "num_gpus": placement.num_gpus,
            "label_selector": dict(placement.labels),
            "runtime_env": worker_environment(threads, on_gpu=placement.num_gpus > 0),
        }

    def guard(self, worker: Any) -> Guard:
        """Replaces the worker when it is lost."""
        return Guard(worker, self.run.recovery, emit=self.emit, clock=self.clock)


class Role(ABC):
    """One kind of worker. A class in a new file of this folder is a new role.

    A worker has a `name`, and the calls of `solon.recovery.startup.Startable`; what `supervised` returns has a `guard`.
    """

    role: ClassVar[str] = ""
    """How pools name it."""

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
        """What a worker's first start is given."""
        return ()

    def together(self, lanes: Sequence[Any]) -> Collection[Any]:
        """What holds the lanes: a pool that may change size, and in which the run continues without one of them when
        another one is left. Lanes that are no `PoolLane`, as the learner's, stay as they are."""
        return Pool(lanes) if all(isinstance(lane, PoolLane) for lane in lanes) else tuple(lanes)


def worker_environment(threads: int, *, on_gpu: bool) -> dict[str, Any]:
    """Environment of a worker process: its share of the threads, no progress bars in its log, no GPU that it did not
    ask for."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Empty means unset to Python: workers write bytecode, so the next start imports twice as fast.
        "PYTHONDONTWRITEBYTECODE": "",
        # What a library starts in it does not import from the folder that the machine's Ray was started in.
        "PYTHONSAFEPATH": "1",
    }
    if not on_gpu:
        # Ray hides no device from an actor that asks for none, unless it is told to; where
        # RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES is set it never does.
        variables |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {"env_vars": variables}
