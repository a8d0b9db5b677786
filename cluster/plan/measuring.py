"""`solon measure`: runs each role of a run alone on this machine, and writes what it needs for its work.

rollout engine, alone ──groups──▶ judge, alone ──feedback──▶ learner, alone ──weights──▶ rollout engine
"""

from __future__ import annotations

import math
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from cluster.config.fitting import machine_cpus, machine_gpus
from cluster.config.run_file import RunFile
from cluster.plan.alone import Alone, JudgeAlone, LearnerAlone, RolloutAlone, Timed
from cluster.plan.rates import (
    JudgeRate,
    LearnerRate,
    LoadRate,
    Point,
    Rates,
    RolloutRate,
    digest_of,
    line,
    models_of,
    settings_of,
)
from solon.errors import InputError
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.records import Group, Prompt, TrainingGroup, Weights

LIBRARIES = ("torch", "vllm", "transformers", "ray")
DRIVER_S = 0.00095
"""Core-seconds of driver and Ray for an answer: docs/performance.md, "Why not 3", a run of 284 answers a second."""
RAY_BYTES = 75 << 20
"""Of an actor beside what it hosts: Ray's own libraries and buffers, seen in runs of benchmarks/plan.py."""
LEAST_STEPS = 3
"""Learner steps that are timed beside the first."""


def measure(
    run: RunFile, prompts: Sequence[Prompt], *, seconds: float, say: Callable[[str], None] = lambda _: None
) -> Rates:
    """seconds: for the work of each role, its start not counted. say: receives a line of progress for each role.

    Raises InputError for a run whose roles cannot run here, RunFailedError when one of them fails.
    """
    _require_here(run)
    # Alone, nothing gives way; what a plan makes of it is arithmetic.
    run = run.model_copy(
        update={
            "rollout": run.rollout.model_copy(update={"gives_way": False}),
            "judging": run.judging.model_copy(update={"gives_way": False}),
        }
    )
    crowding, points = 1.0, list[Point]()
    memory: dict[str, int] = {}
    say(f"rollout engine: {Path(run.policy).name}")
    with Alone(RolloutAlone, run, tuple(prompts)) as engine:
        groups, engine_rate = _rollout(engine, run, seconds, points)
        say(f"judge: {Path(run.judge).name}")
        with Alone(JudgeAlone, run) as judge:
            labelled, judge_rate = _judging(judge, run, groups, seconds, points)
            memory["judge"] = judge.ask("peak")
        say("learner")
        with Alone(LearnerAlone, run) as learner:
            learn_rate = _learning(learner, run, labelled, seconds, points)
            memory["learner"] = learner.ask("peak")
            weights = learner.ask("weights")
            if not run.gpus:
                say("rollout engine and learner at the same time")
                crowding = _crowding(engine, learner, run, labelled, engine_rate, learn_rate, seconds / 2)
        loads = [engine.ask("load", weights)]
        memory["rollout"] = engine.ask("peak")
    # A run maps two versions from the object store, the live one and the next; alone there was one, in own memory.
    mapped = dict.fromkeys(("rollout", "learner"), version_bytes(weights))
    shared = not run.rollout.num_gpus
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    return Rates(
        source="measured",
        device="cpu" if shared else "gpu",
        cores=machine_cpus(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        date=time.strftime("%Y-%m-%d"),
        versions={"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        policy=run.policy,
        judge=run.judge,
        models={role: digest_of(name) for role, name in models_of(run).items()},
        settings=settings_of(run),
        rollout=engine_rate,
        judging=judge_rate,
        learn=learn_rate,
        publish=LoadRate(load_s=min(load.wall_s for load in loads), cores=_cores(loads)),
        driver_s=DRIVER_S if shared else 0.0,
        crowding=crowding,
        answer_tokens=tuple(lengths),
        prompt_tokens=sum(len(group.prompt_token_ids) for group in groups) / len(groups),
        memory={role: peak + RAY_BYTES + mapped.get(role, 0) for role, peak in memory.items()},
        points=tuple(points),
    )


def version_bytes(weights: Weights) -> int:
    """Of the tensors of a published version."""
    return sum(tensor.nbytes for chunk in weights.chunks for tensor in chunk)


def levels(most: int) -> list[int]:
    """Amounts at which a role is measured: one, all that fit, and two between."""
    return sorted({1, max(1, most // 4), max(1, most // 2), most})


def _rollout(engine: Alone, run: RunFile, seconds: float, points: list[Point]) -> tuple[list[Group], RolloutRate]:
    size, batch = run.rollout.group_size, run.ledger.batch_groups
    together = max(1, min(run.rollout.max_running // size, 2 * batch))
    groups: list[Group] = []
    waves: list[tuple[float, float, float]] = []
    timings: list[Timed] = []
    end = time.monotonic() + seconds
    for count in cycle(reversed(levels(together))):
        wave = engine.ask("wave", count)
        groups += wave.made
        lengths = [len(rollout.token_ids) for group in wave.made for rollout in group.rollouts]
        # Every wave decodes as many steps as its longest answer has tokens.
        waves.append((float(max(lengths)), float(sum(lengths)), wave.wall_s))
        timings.append(wave)
        points.append(_point("rollout", count, sum(lengths), wave))
        if len(waves) >= len(levels(together)) and len(groups) >= 2 * batch and time.monotonic() > end:
            break
    step_s, token_s = line(waves)
    return groups, RolloutRate(step_s=step_s, token_s=token_s, cores=_cores(timings))


def _judging(
    judge: Alone, run: RunFile, groups: Sequence[Group], seconds: float, points: list[Point]
) -> tuple[list[TrainingGroup], JudgeRate]:
    together = max(1, min(max(2, 2 * run.judging.max_running // run.rollout.group_size), len(groups) // 3))
    waves: list[tuple[float, float, float]] = []
    timings: list[Timed] = []
    labelled: list[TrainingGroup] = []
    end, left = time.monotonic() + seconds, list(groups)
    # No group twice: the cache would answer.
    for count in cycle(reversed(levels(together))):
        taken, left = left[:count], left[count:]
        if not taken:
            break
        wave = judge.ask("wave", taken)
        labelled += [TrainingGroup(group=g, feedback=f) for g, f in zip(taken, wave.made, strict=True)]
        waves.append((1.0, float(len(taken)), wave.wall_s))
        timings.append(wave)
        points.append(_point("judge", len(taken), sum(group.num_tokens for group in taken), wave))
        if time.monotonic() > end and len(labelled) >= run.ledger.batch_groups:
            break
    call_s, group_s = line(waves)
    usable = [item for item in labelled if item.feedback.num_valid >= run.feedback.min_valid]
    if not usable:
        raise InputError(
            f"the judge gave no valid verdict on {len(labelled)} groups, so that nothing can be trained; check it with "
            "solon check RUN.toml --tests"
        )
    return usable, JudgeRate(call_s=call_s, group_s=max(group_s, 1e-9), cores=_cores(timings))


def _learning(
    learner: Alone, run: RunFile, groups: Sequence[TrainingGroup], seconds: float, points: list[Point]
) -> LearnerRate:
    batch = run.ledger.batch_groups
    source = cycle(groups)
    taken = list(islice(source, batch))
    first, first_tokens = learner.ask("step", taken), sum(item.group.num_tokens for item in taken)
    steps: list[tuple[float, float, float]] = []
    timings: list[Timed] = []
    exports: list[float] = []
    end = time.monotonic() + seconds
    for count in cycle((batch, max(1, batch // 2))):
        taken = list(islice(source, count))
        step = learner.ask("step", taken)
        tokens = sum(item.group.num_tokens for item in taken)
        steps.append((1.0, float(tokens), step.wall_s))
        timings.append(step)
        exports.append(step.made)
        points.append(_point("learner", count, tokens, step))
        if len(steps) >= LEAST_STEPS and time.monotonic() > end:
            break
    step_s, token_s = line(steps)
    return LearnerRate(
        step_s=step_s,
        token_s=token_s,
        cores=_cores(timings),
        export_s=min(exports),
        first_s=max(0.0, first.wall_s - step_s - token_s * first_tokens),
    )


def _crowding(
    engine: Alone,
    learner: Alone,
    run: RunFile,
    groups: Sequence[TrainingGroup],
    engine_rate: RolloutRate,
    learn_rate: LearnerRate,
    seconds: float,
) -> float:
    """Speed of a core beside another busy one: an engine and the learner work at once, against each alone just before
    and just after, since other work on the machine may have come or gone since the rates were measured."""
    batch, size = run.ledger.batch_groups, run.rollout.group_size
    count = max(1, min(run.rollout.max_running // size, batch) // 2)
    over, source = threading.Event(), cycle(groups)

    def wave() -> tuple[float, float]:
        """Seconds that the rates give it, and that it took."""
        found = engine.ask("wave", count)
        lengths = [len(rollout.token_ids) for group in found.made for rollout in group.rollouts]
        return max(lengths) * engine_rate.step_s + sum(lengths) * engine_rate.token_s, found.wall_s

    def step() -> tuple[float, float]:
        taken = list(islice(source, batch))
        found = learner.ask("step", taken)
        return learn_rate.step_s + learn_rate.token_s * sum(item.group.num_tokens for item in taken), found.wall_s

    def generate() -> list[tuple[float, float]]:
        waves: list[tuple[float, float]] = []
        while True:
            found = wave()
            if over.is_set():  # it ran alone for a while
                return waves
            waves.append(found)

    alone_waves, alone_steps = [wave()], [step()]
    steps: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(1) as beside:
        generating = beside.submit(generate)
        try:
            while not steps or time.monotonic() < end:
                steps.append(step())
        finally:
            over.set()
        waves = generating.result()
    alone_waves.append(wave())
    alone_steps.append(step())
    shared = min(1.0, machine_cpus() / (engine_rate.cores + learn_rate.cores))
    found = _speed(steps) / _speed(alone_steps)
    if waves:  # in the geometric mean neither side counts more because it works longer
        found = math.sqrt(found * _speed(waves) / _speed(alone_waves))
    return max(0.3, min(1.0, found / shared))


def _speed(timed: Sequence[tuple[float, float]]) -> float:
    """Against the rates, of (seconds by the rates, seconds taken)."""
    return sum(by_rates for by_rates, _ in timed) / sum(taken for _, taken in timed)


def _require_here(run: RunFile) -> None:
    if EndpointFile.names(run.judge) or any(EndpointFile.names(name) for name in run.feedback.panel):
        raise InputError(
            f"judge {run.judge} is behind an endpoint, expected models that run here: an endpoint's speed is its "
            "owner's; name a model, or set judging's rates in a rates file by hand"
        )
    if run.gpus and not machine_gpus():
        raise InputError(
            f"the run file asks for {run.gpus:g} GPU(s), this machine has none; measure where the run will be, or plan "
            "with published rates: solon plan RUN.toml --gpus N --gpu-type TYPE"
        )
    if run.learn.num_ranks > 1:
        raise InputError(
            f"learn.num_ranks = {run.learn.num_ranks}, expected 1: one rank is measured and ranks are planned from it; "
            "add --set learn.num_ranks=1"
        )
    for section in ("rollout", "judging"):
        if (ranks := getattr(run, section).tensor_parallel) > 1:
            raise InputError(
                f"{section}.tensor_parallel = {ranks}, expected 1: one device is measured and a plan scales its rates; "
                f"add --set {section}.tensor_parallel=1, or for a model that one device cannot hold plan with "
                "published rates: solon plan RUN.toml --gpus N --gpu-type TYPE"
            )


def _point(role: str, amount: int, tokens: int, found: Timed) -> Point:
    return Point(role=role, amount=amount, tokens=tokens, wall_s=found.wall_s, core_s=found.core_s)


def _cores(timings: Sequence[Timed]) -> float:
    return sum(found.core_s for found in timings) / sum(found.wall_s for found in timings)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names: list[Any] = [found.partition(":")[2].strip() for found in lines if found.startswith("model name")]
    return names[0] if names else "unknown processor"
