"""A prompt, the policy's first answer, and rounds of critique and revision, each under one principle.

    user       the prompt
    assistant  first answer
    user       critique request of a principle          round 1
    assistant  critique
    user       its revision request
    assistant  revision
    user       critique request of another principle    round 2
    ...

The turns of a chain are one growing conversation, so that an engine with a prefix cache reads every turn once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from solon.constitution.constitution import Constitution, Principle
from solon.errors import InputError
from solon.records import Message, Prompt

Answer = Callable[[Sequence[Prompt], int], Awaitable[list[str]]]
"""One answer to each conversation; the number is a seed."""
PREAMBLE = re.compile(
    r"^\s*(?:sure|certainly|of course|okay|here)\b[^\n:.!?]{0,120}:\s*\n+|"
    r"^\s*\W{0,4}(?:revis(?:ed|ion)|rewritten|new)(?: (?:answer|response|version))?[*_ ]{0,4}:[*_\s]*",
    re.IGNORECASE,
)
"""What a model says before the revision itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One critique and the revision that follows."""

    principle_id: str
    critique: str
    revision: str
    """Without a preamble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A finished chain."""

    prompt: Prompt
    first: str
    rounds: tuple[Round, ...]

    @property
    def last(self) -> str:
        """The last revision."""
        return self.rounds[-1].revision


async def revise(
    answer: Answer, prompts: Sequence[Prompt], constitution: Constitution, *, rounds: int, seed: int
) -> list[Chain]:
    """The chains of all prompts, turn by turn. A principle is drawn for each prompt and round among those that apply
    and have both requests, without repetition as long as there are others.

    Raises InputError for a prompt to which no such principle applies.
    """
    drawn = [_draw(prompt, constitution, rounds, seed) for prompt in prompts]
    firsts = await answer(prompts, _seed(seed, 0))
    chats = [_said(prompt, "assistant", first) for prompt, first in zip(prompts, firsts, strict=True)]
    found: list[list[Round]] = [[] for _ in prompts]
    for number in range(rounds):
        principles = [one[number] for one in drawn]
        chats = [_said(c, "user", p.critique_request) for c, p in zip(chats, principles, strict=True)]
        critiques = await answer(chats, _seed(seed, 2 * number + 1))
        chats = [
            _said(_said(chat, "assistant", critique), "user", principle.revision_request)
            for chat, critique, principle in zip(chats, critiques, principles, strict=True)
        ]
        revisions = [without_preamble(text) for text in await answer(chats, _seed(seed, 2 * number + 2))]
        chats = [_said(chat, "assistant", text) for chat, text in zip(chats, revisions, strict=True)]
        for rounds_of, principle, critique, revision in zip(found, principles, critiques, revisions, strict=True):
            rounds_of.append(Round(principle_id=principle.id, critique=critique, revision=revision))
    return [
        Chain(prompt=prompt, first=first, rounds=tuple(one))
        for prompt, first, one in zip(prompts, firsts, found, strict=True)
    ]


def without_preamble(text: str) -> str:
    """The revision itself.

    >>> without_preamble("Sure, here is a kinder version:\\n\\nI am happy to help.")
    'I am happy to help.'
    >>> without_preamble("Here: take the bus.")
    'Here: take the bus.'
    """
    return PREAMBLE.sub("", text, count=1).strip()


def _draw(prompt: Prompt, constitution: Constitution, rounds: int, seed: int) -> list[Principle]:
    fitting = [
        principle
        for principle in constitution.principles
        if principle.critique_request and principle.revision_request and principle.applies_if(prompt)
    ]
    if not fitting:
        raise InputError(
            f"no principle with critique_request and revision_request applies to the prompt {prompt.prompt_id} "
            f"({prompt.messages[-1].content[:60]!r}), expected one; add it to the constitution, or leave the prompt out"
        )
    rng, found = random.Random(f"{seed}-{prompt.prompt_id}"), list[Principle]()
    while len(found) < rounds:
        found += rng.sample(fitting, min(len(fitting), rounds - len(found)))
    return found


def _said(chat: Prompt, role: str, text: str) -> Prompt:
    """The conversation with one more turn. A model may say nothing, which a template may refuse."""
    turn = Message(role=role, content=text.strip() or "(nothing)")  # type: ignore[arg-type]
    return replace(chat, messages=(*chat.messages, turn))


def _seed(seed: int, turn: int) -> int:
    """Of one turn of all chains."""
    return seed * 1009 + turn
