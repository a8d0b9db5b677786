"""The caches: latency of a hit, questions asked by a second run of a finished stage, and errors of the semantic cache.

    python benchmarks/caches.py [--quick] [--json PATH]

No model is loaded: a counting `Ask` answers. The embedding is a bag of hashed words and word pairs, which puts near
duplicates as near to each other as any encoder does; nothing here depends on a trained one.
"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from benchmarks._near_duplicates import NearDuplicate, adversarial, harmless
from solon.feedback.caches.cache import CacheConfig, open_cache
from solon.feedback.caches.semantic import SemanticConfig, SemanticJudge
from solon.feedback.caches.semantic_rule import may_stand_for
from solon.feedback.interfaces import Item
from solon.feedback.questions import Answer, Question
from solon.records import Message
from solon.verdicts import Status, Verdict

PROMPT_TOKENS = 200
DIMENSIONS = 512


class Counting:
    """Answers at once and counts."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.asked = 0
        self._delay_s = delay_s

    async def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        self.asked += len(questions)
        await asyncio.sleep(self._delay_s)
        return [Answer((-0.1, -2.4), prompt_tokens=PROMPT_TOKENS) for _ in questions]


def draw_questions(number: int) -> list[Question]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50_000, (number, PROMPT_TOKENS))
    return [Question(tuple(row.tolist()), (1, 2)) for row in ids]


async def exact_rows(folder: Path, *, quick: bool) -> list[Row]:
    """Latency and throughput of the exact cache, in memory and on disk, and of a stage that is run a second time."""
    questions = draw_questions(2_000 if quick else 20_000)
    config = CacheConfig(path=str(folder / "verdicts.sqlite"))
    first, second = Counting(), Counting()
    cache = open_cache(first, config, judge_digest="judge")
    start = time.perf_counter()
    await cache.ask(questions)
    filled = len(questions) / (time.perf_counter() - start)
    in_memory = [await timed(cache.ask([question])) for question in questions[:2000]]
    await cache.close()

    cache = open_cache(second, config, judge_digest="judge")
    on_disk = [await timed(cache.ask([question])) for question in questions[:1000]]
    start = time.perf_counter()
    await cache.ask(questions)
    again = len(questions) / (time.perf_counter() - start)
    await cache.close()

    shared = Counting(delay_s=0.01)
    cache = open_cache(shared, CacheConfig(), judge_digest="judge")
    await asyncio.gather(*(cache.ask(questions[:1]) for _ in range(200)))
    return [
        Row("hit in process, p50, ms", 1e3 * statistics.median(in_memory)),
        Row("hit in process, p99, ms", 1e3 * percentile(in_memory, 99), goal="<= 1.0"),
        Row("hit on disk after a restart, p50, ms", 1e3 * statistics.median(on_disk)),
        Row("hit on disk after a restart, p99, ms", 1e3 * percentile(on_disk, 99)),
        Row("engine calls of a finished stage that is run again; of the first run", second.asked, first.asked),
        Row("the same", second.asked, goal="<= 0"),
        Row("verdicts/s while the cache fills, everything missed", filled),
        Row("verdicts/s of the second run, all from disk", again),
        Row("engine calls for 200 callers with one question", shared.asked, 200, goal="<= 1"),
    ]


async def timed(work: Any) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share))


# -- the semantic cache ----------------------------------------------------------------------------------------


async def embed(texts: Sequence[str]) -> Any:
    rows_ND = np.zeros((len(texts), DIMENSIONS), np.float32)
    for row_D, text in zip(rows_ND, texts, strict=True):
        words = text.lower().split()
        for piece in (*words, *(f"{a} {b}" for a, b in pairwise(words))):
            row_D[int.from_bytes(hashlib.sha256(piece.encode()).digest()[:4], "big") % DIMENSIONS] += 1
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-9)


class Agreeable:
    """A judge that gives every answer the same verdict, so that the semantic cache passes its validation."""

    name = "agreeable"

    def __init__(self) -> None:
        self.asked = 0

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked += len(items)
        return [Verdict(status=Status.OK, margin=2.0, judge=self.name, questions=1) for _ in items]


def item(prompt: str, answer: str) -> Item:
    return Item(
        task="pointwise",
        conversation=(Message(role="user", content=prompt),),
        answers=(answer,),
        principle_id="kind",
        question="Is the answer kind?",
    )


def harmless_variants(pair: NearDuplicate) -> list[str]:
    """Texts that differ from the first only in spaces, capitals, punctuation or a courtesy word."""
    return [text for ending in ("", " .", " !", "  ...") for text in (pair.one + ending, pair.other + ending)]


async def judged(judge: SemanticJudge, prompt: str, answers: Sequence[str]) -> list[bool]:
    """Which of several answers to one prompt, given in sequence, the semantic cache served."""
    verdicts = [(await judge.judge([item(prompt, answer)]))[0] for answer in answers]
    return [verdict.source == "semantic_cache" for verdict in verdicts]


async def semantic_rows(*, quick: bool) -> list[Row]:
    """Near duplicates with another meaning, compared with a plain cache by distance alone."""
    number = 400 if quick else 2000
    attacks, alike = adversarial(number), harmless(200)
    vectors = await embed([text for pair in attacks for text in (pair.one, pair.other)])
    cosines = (vectors[0::2] * vectors[1::2]).sum(1)
    judge = SemanticJudge(Agreeable(), embed, SemanticConfig(threshold=0.5))
    for n, pair in enumerate(harmless(100, seed=1)):
        await judged(judge, named(f"{pair.prompt} Trial", n), harmless_variants(pair))
    assert judge.is_trusted, "the semantic cache was not trusted, so it would serve nothing at all"
    fine = [await judged(judge, named(pair.prompt, n), harmless_variants(pair)) for n, pair in enumerate(alike)]
    # Every entry under attack has learned to cover near duplicates: otherwise it would serve nothing anyway.
    wrong = 0
    for n, pair in enumerate(attacks):
        warmed = [pair.one, *(pair.one + ending for ending in (" .", " !", "  ..."))]
        wrong += (await judged(judge, named(pair.prompt, n), [*warmed, pair.other]))[-1]
    plain = [float((cosines >= limit).sum()) for limit in (0.8, 0.9, 0.95)]
    return [
        Row(f"of {number} adversarial near duplicates answered; by cosine 0.8 alone", wrong, plain[0]),
        Row("the same; by cosine 0.9 alone", wrong, plain[1]),
        Row("the same; by cosine 0.95 alone", wrong, plain[2]),
        Row("the same", wrong, goal="<= 0"),
        Row("allowed by the rule of words alone", sum(may_stand_for(p.one, p.other) for p in attacks), goal="<= 0"),
        Row("median cosine of the adversarial pairs", float(np.median(cosines))),
        Row("share of harmless near duplicates answered, after the first", float(np.mean([hits[1:] for hits in fine]))),
        Row("the same, after the first two, which each entry needs to learn", float(np.mean([h[2:] for h in fine]))),
    ]


def named(prompt: str, number: int) -> str:
    """A separate prompt for each pair, without a digit: the cache skips prompts with numbers."""
    return f"{prompt} Case {''.join(chr(97 + int(digit)) for digit in str(number))}."


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(exact_rows(Path(folder), quick=options.quick))
    rows += asyncio.run(semantic_rows(quick=options.quick))
    report("caches", rows, options.json)


if __name__ == "__main__":
    main()
