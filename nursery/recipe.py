"""Who is grown, how large, and from how many lessons."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nursery.language import embedding_rows
from nursery.model import Shape
from nursery.school import Course


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The courses of the models that are taught; the judge in int8 is made of the judge."""

    policy: Course
    judge: Course
    audit_judge: Course
    large_judge: Course
    seed: int


def recipe(*, seed: int = 0, effort: float = 1.0) -> Recipe:
    """The recipe that the reported numbers belong to; less effort gives less schooled models, for tests."""
    vocab = embedding_rows()
    llama = Shape(family="llama", layers=2, intermediate=256, vocab=vocab)
    qwen = Shape(family="qwen3", layers=2, intermediate=384, kv_heads=2, vocab=vocab)
    large = Shape(family="llama", layers=2, hidden=384, intermediate=1024, heads=12, kv_heads=12, vocab=vocab)
    full = Recipe(
        policy=Course(shape=llama, steps=180, batch=64, seed=seed, muon_lr=0.02),
        judge=Course(shape=llama, steps=480, batch=32, seed=seed + 1),
        audit_judge=Course(shape=qwen, steps=400, batch=32, seed=seed + 2, muon_lr=0.015),
        large_judge=Course(shape=large, steps=300, batch=32, seed=seed + 3),
        seed=seed,
    )
    return Recipe(
        policy=_shortened(full.policy, effort),
        judge=_shortened(full.judge, effort),
        audit_judge=_shortened(full.audit_judge, effort),
        large_judge=_shortened(full.large_judge, effort),
        seed=seed,
    )


def _shortened(course: Course, effort: float) -> Course:
    return replace(course, steps=max(1, round(course.steps * effort)))
