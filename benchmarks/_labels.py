"""Shared by the benchmarks of labels: groups of answers from the nursery, started judges, and a timer."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nursery import answers, prompts
from nursery.grow import Nursery, grow
from nursery.oracles import adherence
from nursery.reading import understand
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.judges.local import LocalJudge, open_judge
from solon.feedback.labelling.dataset import text_group
from solon.records import Group

T = TypeVar("T")


def nursery() -> Nursery:
    """The nursery's models; trains those that are not in the cache."""
    return grow(progress=True)


def constitution_of(grown: Nursery) -> Constitution:
    return Constitution.load(grown.constitution)


def draw_groups(number: int, *, size: int, seed: int) -> list[Group]:
    """Groups of distinct answers of mixed quality to held-out prompts."""
    rng = random.Random(f"groups-{seed}")
    groups = []
    for ordinal in range(number):
        prompt = prompts.draw(rng, held_out=True)
        texts: dict[str, None] = {}
        while len(texts) < size:
            texts[answers.draw(rng, understand(prompt.messages))] = None
        groups.append(text_group(ordinal, prompt, list(texts)))
    return groups


@dataclass(frozen=True, slots=True)
class GoldPair:
    """A question about two answers on which the oracle has a verdict: 1 when the first one is better."""

    item: Item
    gold: float


def gold_pairs(number: int, constitution: Constitution, *, seed: int) -> list[GoldPair]:
    """Pairs of answers that differ under the principle they are asked about."""
    rng = random.Random(f"pairs-{seed}")
    found: list[GoldPair] = []
    questions = {p.id: p.pairwise_question for p in constitution.principles}
    while len(found) < number:
        prompt = prompts.draw(rng, held_out=True)
        first, second = (answers.draw(rng, understand(prompt.messages)) for _ in range(2))
        one, two = adherence(prompt, first), adherence(prompt, second)
        telling = [name for name in one if one[name] != two[name]]
        if telling:
            name = rng.choice(telling)
            item = Item(
                task="pairwise",
                conversation=prompt.messages,
                answers=(first, second),
                principle_id=name,
                question=questions[name],
            )
            found.append(GoldPair(item, float(one[name])))
    return found


def engine_config(model: str | Path, **changes: Any) -> EngineConfig:
    """A judge's engine as the demo runs it, with all cores."""
    return EngineConfig(model=str(model), **{"max_model_len": 256, "threads": 2, **changes})


@asynccontextmanager
async def opened(
    model: str | Path, constitution: Constitution, *, engine: dict[str, Any] | None = None, **feedback: Any
) -> Any:
    """A started judge that is closed at the end."""
    config = FeedbackConfig(**{"template": "compact", **feedback})
    judge: LocalJudge = await open_judge(engine_config(model, **(engine or {})), config, constitution, name="judge")
    try:
        yield judge
    finally:
        await judge.close()


async def timed(work: Awaitable[T]) -> tuple[T, float]:
    """A result and the seconds it took."""
    start = time.perf_counter()
    result = await work
    return result, time.perf_counter() - start
