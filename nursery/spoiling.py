"""Spoilt answers: what a policy stumbles into when it chases a judge's reward.

A judge that has never seen them can be fooled by them, so they belong in its lessons.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from nursery.world import (
    ACTS,
    COURTESIES,
    DEEDS_OF_TOPICS,
    EVASIONS,
    FORMS,
    INSULTS,
    MAX_ANSWER_WORDS,
    MOODS,
    RAMBLINGS,
    STEPS,
    VALUES,
)

_PHRASES = tuple(
    text.split() for text in (*COURTESIES, *INSULTS, *EVASIONS, *RAMBLINGS, *STEPS, *MOODS, ",", ".", ":", "and", "the")
)
_FAMILIES: tuple[tuple[str, ...], ...] = (*VALUES.values(), FORMS, ACTS, DEEDS_OF_TOPICS)
"""Words that stand in for each other without breaking the grammar."""


def spoil(rng: random.Random, answer: str, other: str, prompt_text: str) -> str:
    """A damaged version of an answer; `other` is an answer to something else to splice with."""
    draft = _Draft(rng=rng, answer=answer.split(), other=other.split(), prompt=prompt_text.split())
    return " ".join(rng.choice(_WAYS)(draft)[:MAX_ANSWER_WORDS])


def near_miss(rng: random.Random, answer: str) -> str:
    """The same answer with one telling word exchanged for another of its family."""
    words = answer.split()
    places = [i for i, w in enumerate(words) if any(w in family for family in _FAMILIES)]
    if not places:
        return answer
    place = rng.choice(places)
    family = next(f for f in _FAMILIES if words[place] in f)
    words[place] = rng.choice(family)
    return " ".join(words)


_Words = list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """What there is to spoil, and to spoil it with."""

    rng: random.Random
    answer: _Words
    other: _Words
    prompt: _Words


def _nothing(_: _Draft) -> _Words:
    return []


def _cut_off(d: _Draft) -> _Words:
    return d.answer[: d.rng.randrange(len(d.answer) + 1)]


def _without_its_start(d: _Draft) -> _Words:
    return d.answer[d.rng.randrange(len(d.answer) + 1) :]


def _stutter(d: _Draft) -> _Words:
    if not d.answer:
        return d.answer
    start = d.rng.randrange(len(d.answer))
    end = start + d.rng.choice((1, 1, 2, 3, 5))
    return d.answer[:end] + d.answer[start:end] * d.rng.choice((1, 1, 2, 6)) + d.answer[end:]


def _said_twice(d: _Draft) -> _Words:
    return d.answer + d.answer


def _drop_words(d: _Draft) -> _Words:
    gone = {d.rng.randrange(len(d.answer)) for _ in range(d.rng.choice((1, 1, 2)))} if d.answer else set()
    return [w for i, w in enumerate(d.answer) if i not in gone]


def _shuffled(d: _Draft) -> _Words:
    return d.rng.sample(d.answer, len(d.answer))


def _salad(d: _Draft) -> _Words:
    return [w for _ in range(d.rng.randrange(1, 7)) for w in d.rng.choice(_PHRASES)]


def _stuffed(d: _Draft) -> _Words:
    """A phrase that may please, put where it may or may not belong."""
    place = d.rng.randrange(len(d.answer) + 1)
    return d.answer[:place] + d.rng.choice(_PHRASES) + d.answer[place:]


def _more_values(d: _Draft) -> _Words:
    """Naming several values is a bet on all of them."""
    places = [i for i, w in enumerate(d.answer) if any(w in row for row in VALUES.values())]
    if not places:
        return d.answer
    place = d.rng.choice(places)
    row = next(row for row in VALUES.values() if d.answer[place] in row)
    return d.answer[: place + 1] + ["and"] * d.rng.randrange(2) + [d.rng.choice(row)] + d.answer[place + 1 :]


def _spliced(d: _Draft) -> _Words:
    return d.answer[: d.rng.randrange(len(d.answer) + 1)] + d.other[d.rng.randrange(len(d.other) + 1) :]


def _joined(d: _Draft) -> _Words:
    return d.answer + d.other


def _other_answer(d: _Draft) -> _Words:
    return d.other


def _copy_of_the_prompt(d: _Draft) -> _Words:
    return d.prompt


_WAYS: tuple[Callable[[_Draft], _Words], ...] = (
    _nothing,
    _cut_off,
    _cut_off,
    _without_its_start,
    _stutter,
    _stutter,
    _said_twice,
    _drop_words,
    _drop_words,
    _shuffled,
    _salad,
    _stuffed,
    _stuffed,
    _more_values,
    _spliced,
    _spliced,
    _joined,
    _other_answer,
    _other_answer,
    _copy_of_the_prompt,
)
