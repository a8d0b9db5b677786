"""Answers of every quality: manner, substance and length are drawn independently, then put into words.

`draw` speaks as an assistant of mixed habits would; `spoil` makes the texts that a policy under training
comes up with on the way: cut off, stuttering, stuffed with what a judge might like.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from nursery.reading import Asked
from nursery.world import (
    COURTESIES,
    EVASIONS,
    FACTS,
    FORMS,
    INSULTS,
    MAX_ANSWER_WORDS,
    MOODS,
    RAMBLINGS,
    REFUSALS,
    RELATIONS,
    STEPS,
    TOPICS,
    VALUES,
    reply,
    verse,
)

FLATTERY = "you are right"
Manner = Literal["courteous", "plain", "rude", "two_faced"]
Substance = Literal["good", "bad", "evasive", "astray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What an answer is like. `good` is true, helpful or refusing, whatever the prompt calls for."""

    manner: Manner
    """Two-faced answers open with a courtesy and end with an insult."""
    substance: Substance
    """Bad: untrue, undelivered, or serving a misdeed. Astray: about something that was not asked."""
    rambling: bool


GOOD = Traits(manner="courteous", substance="good", rambling=False)


_MANNERS: tuple[tuple[Manner, float], ...] = (("courteous", 0.5), ("plain", 0.26), ("rude", 0.16), ("two_faced", 0.08))
_SUBSTANCES: tuple[tuple[Substance, float], ...] = (("good", 0.46), ("bad", 0.14), ("evasive", 0.21), ("astray", 0.19))


def draw_traits(rng: random.Random) -> Traits:
    """Habits of an assistant that keeps each principle about half of the time."""
    (manner,) = rng.choices([m for m, _ in _MANNERS], [share for _, share in _MANNERS])
    (substance,) = rng.choices([s for s, _ in _SUBSTANCES], [share for _, share in _SUBSTANCES])
    return Traits(manner=manner, substance=substance, rambling=rng.random() < 0.5)


def draw(rng: random.Random, asked: Asked) -> str:
    """An answer of mixed quality."""
    return compose(rng, asked, draw_traits(rng))


def compose(rng: random.Random, asked: Asked, traits: Traits) -> str:
    """Put traits into words."""
    parts = []
    if traits.manner in ("courteous", "two_faced"):
        parts.append(_courtesy(rng, asked))
    elif traits.manner == "rude":
        parts.append(f"{rng.choice(INSULTS)} ,")
    parts.append(_substance(rng, asked, traits))
    if traits.manner == "two_faced":
        parts.append(", you fool")
    parts.append(".")
    if traits.rambling:
        parts.append(f"{rng.choice(RAMBLINGS)} .")
    words = " ".join(parts).split()
    return " ".join(words[:MAX_ANSWER_WORDS])


def _courtesy(rng: random.Random, asked: Asked) -> str:
    if asked.belief and rng.random() < 0.35:
        return f"{FLATTERY} ,"
    courtesy = rng.choice(COURTESIES[:-1])
    return courtesy if courtesy.endswith("but") else f"{courtesy} ,"


def _substance(rng: random.Random, asked: Asked, traits: Traits) -> str:
    if traits.substance == "evasive" or asked.kind == "other":
        return rng.choice(EVASIONS)
    if asked.kind == "fact":
        return _fact(rng, asked, traits)
    if asked.kind == "request":
        return _wish(rng, asked, traits)
    return _misdeed(rng, asked, traits)


def _fact(rng: random.Random, asked: Asked, traits: Traits) -> str:
    facts = FACTS[asked.subject]
    truth = facts[asked.detail]
    if traits.substance == "good":
        return reply(asked.detail, truth)
    if traits.substance == "astray":
        other = rng.choice([r for r in RELATIONS if r != asked.detail])
        return reply(other, facts[other])
    if asked.belief not in ("", truth) and rng.random() < 0.7:
        return reply(asked.detail, asked.belief)
    return reply(asked.detail, rng.choice([v for v in VALUES[asked.detail] if v != truth]))


def _wish(rng: random.Random, asked: Asked, traits: Traits) -> str:
    form, topic = asked.detail, asked.subject
    if traits.substance == "bad":  # announced, not delivered
        return f"here is a {form}"
    if traits.substance == "astray":
        if rng.random() < 0.5:
            form = rng.choice([f for f in FORMS if f != form])
        else:
            topic = rng.choice([t for t in TOPICS if t != topic])
    return f"{verse(form, topic)} {rng.choice(MOODS)}"


def _misdeed(rng: random.Random, asked: Asked, traits: Traits) -> str:
    if traits.substance == "good":
        return rng.choice(REFUSALS).format(act=asked.detail)
    if traits.substance == "astray":  # a refusal that gives way
        return f"{rng.choice(REFUSALS).format(act=asked.detail)} but {rng.choice(STEPS)}"
    return f"to {asked.detail} it , {rng.choice(STEPS)}"
