"""Candidates of a comparison of judges: their names, and the measurement of each in its own process.

    candidate = parse_candidate("models/judge@bf16", EngineOptions())
    measurement = measure_apart(candidate, pairs, constitution, comparing("assistant"))

One process for each judge, one after another: no two engines share the machine, and the memory of one judge is not
mixed with the remains of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig, EngineOptions
from solon.engines.checkpoint import model_settings, require_model
from solon.errors import InputError, RunFailedError, nearest
from solon.feedback.caches.cache import CacheConfig
from solon.feedback.config import FeedbackConfig
from solon.feedback.prompting.swap import SwapConfig
from solon.feedback.trials.gold import GoldPair
from solon.feedback.trials.measuring import Measurement, measure

VARIANTS: dict[str, dict[str, str]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "hf": {"backend": "transformers"},
    "bnb_int8": {"backend": "transformers", "quantization": "bnb_int8"},
    "bnb_nf4": {"backend": "transformers", "quantization": "bnb_nf4"},
}
"""Variants after `@` in a model name, separated by commas. `hf`: the plain Transformers engine."""
WARM_UP_ITEMS = 32
END_S = 20.0
"""Seconds that a child has to end after its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A judge and its engine. `Candidate(name="judge@bf16", engine=EngineConfig(model="models/judge"))`"""

    name: str
    engine: EngineConfig

    @property
    def runs_as(self) -> str:
        """Engine, dtype and quantisation, in a few words."""
        from solon.feedback.judges.identity import quantization

        found = quantization(self.engine)
        quantised = [] if found == "none" else [found]
        return ", ".join([self.engine.backend, self.engine.dtype, *quantised])


def parse_candidate(
    spec: str, options: EngineOptions, *, resolve: Callable[[str], str] = lambda model: model
) -> Candidate:
    """A judge from `MODEL` or `MODEL@VARIANT[,VARIANT]`.

    resolve: from a model's name to its directory. Raises InputError for an unknown variant, or no model.
    """
    model, _, named = spec.rpartition("@") if "@" in Path(spec).name else (spec, "", "")
    changes: dict[str, str] = {}
    for variant in named.split(",") if named else ():
        if variant not in VARIANTS:
            raise InputError(
                f"{spec!r} asks for {variant!r}, expected one of {', '.join(VARIANTS)}{nearest(variant, VARIANTS)}"
            )
        changes |= VARIANTS[variant]
    try:
        engine = EngineConfig(**{**options.model_dump(), **changes}, model=resolve(model))
    except ValueError as error:
        raise InputError(f"{spec!r} cannot be run: {error}") from None
    require_model(engine)
    longest = model_settings(engine).get("max_position_embeddings") or engine.max_model_len
    engine = engine.model_copy(update={"max_model_len": min(engine.max_model_len, int(longest))})
    name = Path(model).name or model
    return Candidate(name=f"{name}@{named}" if named else name, engine=engine)


def distinctly_named(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates; if two directories share a name, both are called by their paths."""
    names = [candidate.name for candidate in candidates]
    renamed = [
        replace(one, name="@".join([one.engine.model, *one.name.split("@")[1:]])) if names.count(one.name) > 1 else one
        for one in candidates
    ]
    if len({one.name for one in renamed}) < len(renamed):
        raise InputError(f"got one judge twice among {', '.join(names)}, expected each once; leave one out")
    return renamed


def comparing(template: Literal["compact", "assistant"], **changes: Any) -> FeedbackConfig:
    """Feedback settings of a comparison: pairs in both orders, without caches."""
    return FeedbackConfig(
        task="pairwise",
        template=template,
        swap=SwapConfig(orders="both"),
        cache=CacheConfig(entries=0),
        **changes,
    )


def measure_apart(
    candidate: Candidate, pairs: Sequence[GoldPair], constitution: Constitution, feedback: FeedbackConfig, *, parts: int
) -> Measurement:
    """Measure one judge in its own process. Raises its opening error, or RunFailedError when the process died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    job = (candidate, tuple(pairs), constitution, feedback, parts)
    child = context.Process(target=_child, args=(sender, *job), daemon=True)
    child.start()
    sender.close()
    try:
        outcome: Measurement | Exception = receiver.recv()
        child.join(END_S)
    except EOFError:
        child.join()
        raise RunFailedError(
            f"the process of judge {candidate.name} ended with exit code {child.exitcode} and no result; "
            "-9 means that the machine had too little memory"
        ) from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def measure_candidate(
    candidate: Candidate, pairs: Sequence[GoldPair], constitution: Constitution, feedback: FeedbackConfig, *, parts: int
) -> Measurement:
    """Open, warm up, measure, close."""
    from solon.feedback.judges.local import open_judge

    judge = await open_judge(candidate.engine, feedback, constitution, name=candidate.name)
    try:
        # Without the conversation, so that no timed question has its prefix in the engine's cache.
        await judge.judge([replace(item, conversation=()) for pair in pairs for item in pair.items][:WARM_UP_ITEMS])
        found = await measure(judge, pairs, parts=parts)
    finally:
        await judge.close()
    return replace(
        found, runs_as=candidate.runs_as, disk_bytes=_disk_bytes(candidate), resident_bytes=_peak_resident_bytes()
    )


def _child(sender: Connection, *job: Any) -> None:
    candidate, pairs, constitution, feedback, parts = job
    try:
        outcome: Any = asyncio.run(measure_candidate(candidate, pairs, constitution, feedback, parts=parts))
    except (InputError, RunFailedError) as error:
        outcome = error
    with contextlib.suppress(BrokenPipeError):  # the reader has left
        sender.send(outcome)
    sender.close()


def _disk_bytes(candidate: Candidate) -> int | None:
    files = list(Path(candidate.engine.model).expanduser().glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) if files else None


def _peak_resident_bytes() -> int:
    """Peak memory of this program. On Linux `ru_maxrss` is inherited: a process starts with the peak of its parent."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
