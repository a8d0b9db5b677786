"""Each role of a run in a process of its own, without Ray: the classes that its actors host, with the environment of
an actor.

    with Alone(RolloutAlone, run, inputs.prompts) as engine:
        wave = engine.ask("wave", 8)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from cluster.config.run_file import RunFile
from cluster.pools.base import worker_environment
from solon.errors import InputError, RunFailedError, one_line
from solon.records import Feedback, Group, Prompt, TrainingGroup, Weights


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """What a piece of work took, and what it made."""

    wall_s: float
    core_s: float
    made: Any


class Alone:
    """A process of one role; `ask` calls a method there."""

    def __init__(self, role: type, run: RunFile, *arguments: Any) -> None:
        """Starts the process and waits until the role is ready. Raises InputError or RunFailedError."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, role, run, arguments), daemon=False)
        with _environment(role.environment(run)):  # type: ignore[attr-defined]
            self._process.start()
        theirs.close()
        self.name: str = role.name  # type: ignore[attr-defined]
        try:
            self.ask("start")
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """The result of a method of the role. Raises InputError when the role refuses, RunFailedError when it fails."""
        try:
            self._pipe.send((method, arguments))
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise RunFailedError(
                f"the process of the {self.name} ended ({self._process.exitcode}) while it was measured; "
                "its messages are above"
            ) from None
        if kind == "refused":
            raise InputError(value)
        if kind == "failed":
            raise RunFailedError(f"the {self.name} failed while it was measured: {value}")
        return value

    def close(self) -> None:
        """Ends the process: nothing in it is kept."""
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(pipe: Connection, role: type, run: RunFile, arguments: tuple[Any, ...]) -> None:
    """What the process runs: requests one after the other until the other side closes the pipe."""
    worker = role(run, *arguments)
    while True:
        try:
            method, given = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # engines keep threads that would hold the process
        try:
            answer = ("done", getattr(worker, method)(*given))
        except InputError as error:
            answer = ("refused", str(error))
        except Exception as error:  # whatever libraries raise is the parent's to report
            answer = ("failed", one_line(f"{type(error).__name__}: {error}"))
        pipe.send(answer)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """A process inherits these; the allocator and OpenMP read theirs before any of its code runs."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def timed(work: Callable[[], Any]) -> Timed:
    """Wall-clock time, and time on all cores, of this process."""
    wall, core = time.perf_counter(), time.process_time()
    made = work()
    return Timed(wall_s=time.perf_counter() - wall, core_s=time.process_time() - core, made=made)


def peak_bytes() -> int:
    """Peak resident memory of this process; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        for found in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if found.startswith("VmHWM:"):
                return int(found.split()[1]) * 1024
    return 0


class RolloutAlone:
    """Generates groups, as an engine of the run would."""

    name = "rollout engine"

    def __init__(self, run: RunFile, prompts: Sequence[Prompt]) -> None:
        from solon.files.prompts import PromptSource

        self._run, self._prompts = run, PromptSource(prompts, seed=run.seed)
        self._next = 0

    @staticmethod
    def environment(run: RunFile) -> dict[str, str]:
        return _variables(run.rollout.threads, on_gpu=run.rollout.num_gpus > 0)

    def start(self) -> None:
        from solon.pipeline.rollout import RolloutSettings, RolloutWorker

        run = self._run
        settings = RolloutSettings(
            sampling=run.rollout.sampling(),
            group_size=run.rollout.group_size,
            seed=run.seed,
            salvage_every_s=run.recovery.salvage_every_s,
            cuts_overlong=run.data.overlong == "cut",
        )
        pool = run.workers[run.policy_pool]
        engine = pool.engine_config(seed=run.seed).model_copy(update={"reloads": True})
        self._loop = asyncio.Runner()
        self._worker = RolloutWorker(engine, settings, name="rollout-0")
        self._loop.run(self._worker.start())

    def wave(self, groups: int) -> Timed:
        """This many new groups, begun together."""
        from solon.ledger.leases import Grant
        from solon.protocols import Assignment

        ordinals = range(self._next, self._next + groups)
        self._next += groups
        work = [
            Assignment(grant=Grant(ordinal, 0, 0, sample_index=ordinal), prompt=self._prompts[ordinal])
            for ordinal in ordinals
        ]

        async def generate() -> list[Group]:
            return [item[1] async for item in self._worker.generate(work) if isinstance(item, tuple)]

        return timed(lambda: self._loop.run(generate()))

    def load(self, weights: Weights) -> Timed:
        """New weights, compared and attested."""
        return timed(lambda: self._loop.run(self._worker.load_weights(weights)) and None)

    def peak(self) -> int:
        return peak_bytes()


class JudgeAlone:
    """Labels groups, as a judge of the run would."""

    name = "judge"

    def __init__(self, run: RunFile) -> None:
        self._run = run

    @staticmethod
    def environment(run: RunFile) -> dict[str, str]:
        return _variables(run.judging.threads, on_gpu=run.judging.num_gpus > 0)

    def start(self) -> None:
        from cluster.pools.judge import source_of
        from solon.constitution.constitution import Constitution
        from solon.feedback.prompting.secret import nonce_secret
        from solon.feedback.worker import JudgeWorker

        run = self._run
        pool = run.workers[run.judge_pool]
        context: Any = _Seed(run)
        self._loop = asyncio.Runner()
        self._worker = JudgeWorker(
            source_of(pool.model, pool, context),
            run.feedback,
            Constitution.load(run.constitution),
            name="judge-0",
            others=[source_of(other, pool, context) for other in run.feedback.panel],
            secret=nonce_secret(),
        )
        self._loop.run(self._worker.start())

    def wave(self, groups: Sequence[Group]) -> Timed:
        """Feedback on these groups, given together."""

        async def label() -> list[Feedback]:
            return [found for _, found in await asyncio.gather(*(self._worker.label(group) for group in groups))]

        return timed(lambda: self._loop.run(label()))

    def peak(self) -> int:
        return peak_bytes()


class LearnerAlone:
    """Trains steps and publishes, as the learner of the run would."""

    name = "learner"

    def __init__(self, run: RunFile) -> None:
        self._run = run

    @staticmethod
    def environment(run: RunFile) -> dict[str, str]:
        return _variables(run.learn.threads, on_gpu=run.learn.num_gpus > 0, trains=True)

    def start(self) -> None:
        from learners.build import build_learner
        from solon.engines.stops import end_ids_of

        run, sampling = self._run, self._run.rollout.sampling()
        self._learner = build_learner(
            run.learn.placed,
            model=run.policy,
            temperature=sampling.temperature,
            filters=sampling.filters,
            end_ids=end_ids_of(run.policy, sampling) if sampling.filters.min_tokens else (),
            seed=run.seed,
            name="learner",
            engines_in_float32=run.rollout.computes_in_float32,
        )
        self._learner.initial_weights()

    def step(self, groups: Sequence[TrainingGroup]) -> Timed:
        """One optimiser step on these groups and its publication; makes the seconds of the export."""

        def train() -> float:
            report, self._weights = self._learner.step(self._learner.version, list(groups))
            return float(report.metrics.get("learn/export_s/sum", 0.0))

        return timed(train)

    def weights(self) -> Weights:
        """Those of the last step."""
        return self._weights

    def peak(self) -> int:
        return peak_bytes()


@dataclasses.dataclass(frozen=True, slots=True)
class _Seed:
    """What `source_of` needs of a run."""

    run: RunFile


def _variables(threads: int, *, on_gpu: bool, trains: bool = False) -> dict[str, str]:
    found: dict[str, str] = worker_environment(threads, on_gpu=on_gpu, trains=trains)["env_vars"]
    # In a run, warnings of libraries go to the log of an actor; here they would cover the figures. What a person sets
    # is kept.
    found["VLLM_LOGGING_LEVEL"] = os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
    found["PYTHONWARNINGS"] = ",".join(filter(None, (ENDED, os.environ.get("PYTHONWARNINGS"))))
    return found


ENDED = "ignore::UserWarning:multiprocessing.resource_tracker"
"""Of a process that is ended with its engine, the system takes back the semaphores."""
