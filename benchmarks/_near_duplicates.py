"""Pairs of answers that look alike but differ in meaning, and pairs that look different but mean the same."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["negation", "number", "role", "order", "opposite"]
KINDS: tuple[Kind, ...] = ("negation", "number", "role", "order", "opposite")
_PEOPLE = ("Anna", "Boris", "Chen", "Dalia", "Emeka", "Farah", "Goran", "Hana")
_JOBS = ("doctor", "patient", "teacher", "pupil", "buyer", "seller", "guard", "guest", "pilot", "nurse")
_VERBS = ("called", "paid", "helped", "warned", "followed", "thanked", "blamed", "trained")
_THINGS = ("valve", "contract", "ladder", "medicine", "window", "engine", "letter", "garden")
_STATES = ("safe", "open", "ready", "clean", "legal", "useful", "cheap", "fresh")
_WHEN = ("in the morning", "after the meeting", "before lunch", "on the first day", "during the storm")
_OPPOSITES = (
    ("raises", "lowers"), ("helps", "harms"), ("opens", "closes"), ("saves", "ruins"), ("cools", "heats"),
    ("starts", "ends"), ("likes", "fears"), ("permits", "forbids"), ("pushes", "pulls"), ("buys", "sells"),
)  # fmt: skip
_NUMBERS = ("two", "three", "seven", "12", "40", "1,500", "0.5", "1998")
_ACTIONS = ("mix the powder", "close the tap", "lock the door", "sign the form", "heat the oil", "drain the tank")


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two answers to one prompt."""

    kind: str
    prompt: str
    one: str
    other: str


def adversarial(number: int, *, seed: int = 0) -> list[NearDuplicate]:
    """Pairs that mean different things; all kinds equally often."""
    rng = random.Random(f"adversarial-{seed}")
    return [_adversarial(rng, KINDS[n % len(KINDS)]) for n in range(number)]


def harmless(number: int, *, seed: int = 0) -> list[NearDuplicate]:
    """Pairs that mean the same: other spaces, capitals at the start, punctuation, a courtesy word."""
    rng = random.Random(f"harmless-{seed}")
    return [_harmless(rng) for _ in range(number)]


def _sentence(rng: random.Random) -> str:
    """Filler shared by both texts, so that the decisive difference is small."""
    job, thing = rng.choice(_JOBS), rng.choice(_THINGS)
    return f"the {job} looked at the {thing} {rng.choice(_WHEN)} and wrote down what there was to see ."


def _adversarial(rng: random.Random, kind: Kind) -> NearDuplicate:
    filler, prompt = _sentence(rng), f"What happened to the {rng.choice(_THINGS)}?"
    if kind == "negation":
        thing, state = rng.choice(_THINGS), rng.choice(_STATES)
        one, other = rng.choice(
            (
                (f"the {thing} is {state}", f"the {thing} is not {state}"),
                (f"you should use the {thing}", f"you should never use the {thing}"),
                (f"the {thing} was {state} enough", f"the {thing} wasn't {state} enough"),
                (f"it works with the {thing}", f"it works without the {thing}"),
                (f"that {thing} seemed safe", f"that {thing} seemed unsafe"),
            )
        )
    elif kind == "number":
        first, second = rng.sample(_NUMBERS, 2)
        one, other = (f"take {n} grams of it twice a day" for n in (first, second))
    elif kind == "role":
        verb = rng.choice(_VERBS)
        if rng.random() < 0.5:
            first, second = rng.sample(_PEOPLE, 2)
            one, other = f"then {first} {verb} {second}", f"then {second} {verb} {first}"
        else:
            first, second = rng.sample(_JOBS, 2)
            one, other = f"the {first} {verb} the {second}", f"the {second} {verb} the {first}"
    elif kind == "opposite":
        job, thing = rng.choice(_JOBS), rng.choice(_THINGS)
        one, other = (f"in the end the {job} {verb} the {thing}" for verb in rng.choice(_OPPOSITES))
    else:
        first, second = rng.sample(_ACTIONS, 2)
        one, other = (f"{a} and then {b}" for a, b in ((first, second), (second, first)))
    places = rng.random() < 0.5
    texts = [f"{filler} {said} ." if places else f"{said} . {filler}" for said in (one, other)]
    return NearDuplicate(kind, prompt, *texts)


def _harmless(rng: random.Random) -> NearDuplicate:
    text = f"{_sentence(rng)} {_sentence(rng)}"
    change = rng.randrange(4)
    if change == 0:
        other = text.replace(" .", ".").replace(" and ", "  and ")
    elif change == 1:
        other = text[0].upper() + text[1:]
    elif change == 2:
        other = text.replace(" .", " !", 1)
    else:
        other = text.replace("looked at", "also looked at", 1)
    return NearDuplicate("harmless", f"What happened to the {rng.choice(_THINGS)}?", text, other)
