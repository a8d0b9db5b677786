"""Prompts of the English world, in three parts: for training, for held-out evaluation, and for gold verdicts.

The parts are split by a digest of what is asked: no topic and no misdeed of one part appears in another, however it is
phrased. An everyday request comes with two wishes; a harmful one with none, as declining goes without saying.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from english.requests import Request, draw_misdeed, draw_request
from english.wishes import EVERYDAY, HARMFUL, UNSTATED, WISHES, keeps
from solon.records import Message, Prompt

Part = Literal["train", "heldout", "gold"]
NUMBERS: dict[Part, int] = {"train": 2000, "heldout": 256, "gold": 256}
HARMFUL_SHARE = 0.25
EXCLUSIVE = ({"sentence", "question"},)
"""Wishes that a prompt does not combine."""


def draw(rng: random.Random, part: Part) -> tuple[Request, Prompt]:
    """One request of a part, and the prompt that adds wishes to it."""
    while True:
        harmful = rng.random() < HARMFUL_SHARE
        request = draw_misdeed(rng) if harmful else draw_request(rng)
        if part_of(request) == part:
            return request, with_wishes(rng, request, draw_wishes(rng, request))


def draw_many(number: int, *, seed: int, part: Part) -> list[Prompt]:
    """Distinct prompts, the same ones for the same seed."""
    rng = random.Random(f"english-{seed}-{part}")
    found: dict[str, Prompt] = {}
    while len(found) < number:
        _, prompt = draw(rng, part)
        found.setdefault(prompt.prompt_id, prompt)
    return list(found.values())


def draw_wishes(rng: random.Random, request: Request) -> list[str]:
    """Tags of the wishes for a request: two that go together and those of every everyday request, or those of every
    harmful one."""
    if request.is_harmful:
        return [tag(name, WISHES[name].draw(rng, request)) for name in HARMFUL]
    while True:
        names = rng.sample(EVERYDAY, 2)
        drawn = {name: WISHES[name].draw(rng, request) for name in names}
        if set(names) not in EXCLUSIVE and (set(names) != {"mention", "avoid"} or len(set(drawn.values())) == 2):
            return about(request, [tag(name, argument) for name, argument in drawn.items()])


def about(request: Request, tags: Sequence[str]) -> list[str]:
    """These tags of stated wishes, and the unstated ones of an everyday request. A word that the user does not want is
    not counted as one of the topic; where none is left, the topic is not asked for."""
    avoided = {wish.partition(":")[2] for wish in tags if wish.startswith("avoid:")}
    spoken = replace(request, about=tuple(word for word in request.about if word not in avoided))
    return [*tags, *(tag(name, WISHES[name].draw(random.Random(0), spoken)) for name in UNSTATED if spoken.about)]


def tag(name: str, argument: str) -> str:
    """A wish as a tag: `name`, or `name:argument`."""
    return f"{name}:{argument}" if argument else name


def with_wishes(rng: random.Random, request: Request, tags: Sequence[str]) -> Prompt:
    """The prompt of a request and the wishes of these tags.

    Its tags are the wishes' names, which principles refer to, and the wishes with their arguments, which programs read.
    """
    said = [request.text]
    for wish_tag in tags:
        name, _, argument = wish_tag.partition(":")
        if WISHES[name].phrasings:
            said.append(rng.choice(WISHES[name].phrasings).format(x=argument))
    text = " ".join(said)
    names = [wish_tag.partition(":")[0] for wish_tag in tags]
    return Prompt(
        prompt_id=hashlib.sha256(text.encode()).hexdigest()[:16],
        messages=(Message(role="user", content=text),),
        tags=tuple(dict.fromkeys([*names, *tags])),
    )


def wishes_of(prompt: Prompt) -> dict[str, str]:
    """The tag of each wish of a prompt, by the wish's name; empty for prompts of other worlds."""
    found: dict[str, str] = {}
    for each in prompt.tags:
        name = each.partition(":")[0]
        if name in WISHES and (name not in found or ":" in each):
            found[name] = each
    return found


def adherence(prompt: Prompt, answer: str) -> dict[str, bool]:
    """Which wishes of the prompt the answer keeps, by the programs. Evaluation, gold and teaching only."""
    return {name: keeps(each, answer) for name, each in wishes_of(prompt).items()}


def part_of(request: Request) -> Part:
    """The part that a request belongs to: of all topics and misdeeds a fifth is held out, and a tenth is gold."""
    share = hashlib.sha256(request.key.encode()).digest()[0] / 256
    return "heldout" if share < 0.2 else "gold" if share < 0.3 else "train"


def write_jsonl(path: Path, prompts: Iterable[Prompt]) -> None:
    """Columns `prompt` (chat messages) and `tags`."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
            file.write(json.dumps({"prompt": turns, "tags": list(prompt.tags)}) + "\n")
