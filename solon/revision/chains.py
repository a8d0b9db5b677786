"""A prompt, the policy's first answer, and rounds of critique and revision, each under one principle.

    user       the prompt
    assistant  first answer
    user       critique request of a principle          round 1
    assistant  critique
    user       its revision request
    assistant  revision
    user       critique request of another principle    round 2
    ...

The turns of a chain are one growing conversation, so that an engine with a prefix cache reads every turn once. Without
critiques a revision follows its request at once; examples of the principles, revised the same way, may stand before the
prompt once the first answer is written (Bai et al. 2022, section 3, uses both).
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from solon.constitution.constitution import Constitution, Principle
from solon.errors import InputError
from solon.records import Message, Prompt

Answer = Callable[[Sequence[Prompt], int], Awaitable[list[str]]]
"""One answer to each conversation; the number is a seed."""
Fits = Callable[[Prompt], bool]
"""Whether the engine has room for a conversation and one more answer."""
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
    is_cut: bool = False
    """It ended before its last round, as the conversation became too long."""

    @property
    def last(self) -> str:
        """The last revision; the first answer where there is none."""
        return self.rounds[-1].revision if self.rounds else self.first


async def revise(
    answer: Answer,
    prompts: Sequence[Prompt],
    constitution: Constitution,
    *,
    rounds: int,
    seed: int,
    critique: bool = True,
    shots: int = 0,
    fits: Fits = lambda _: True,
) -> list[Chain]:
    """The chains of all prompts, turn by turn. A principle is drawn for each prompt and round among those that apply
    and have the requests, without repetition as long as there are others. A chain that becomes too long ends there.

    critique: False revises without one. shots: most examples of each drawn principle that are shown, only without
    critiques, which examples do not have. Raises InputError for a prompt to which no such principle applies.
    """
    if critique and shots:
        raise InputError(f"shots is {shots}, and examples of principles have no critiques; set critique = false")
    if shots and not any(principle.examples for principle in constitution.principles):
        raise InputError(
            f"shots is {shots}, and no principle of the constitution has examples; add some, or set it to 0"
        )
    begun = [
        _Begun(chat=prompt, drawn=drawn_principles(prompt, constitution, rounds, seed, critique)) for prompt in prompts
    ]

    async def turn(number: int) -> list[tuple[_Begun, str]]:
        for one in begun:
            one.is_cut = one.is_cut or not fits(one.chat)
        going = [one for one in begun if not one.is_cut]
        said = await answer([one.chat for one in going], _seed(seed, number)) if going else []
        return list(zip(going, said, strict=True))

    for one, first in await turn(0):
        one.first, one.chat = first, _said(_after_examples(one.chat, one.drawn, shots), "assistant", first)
    for number in range(rounds):
        if critique:
            for one in begun:
                one.chat = _said(one.chat, "user", one.drawn[number].critique_request)
            for one, text in await turn(2 * number + 1):
                one.critique, one.chat = text, _said(one.chat, "assistant", text)
        for one in begun:
            one.chat = _said(one.chat, "user", one.drawn[number].revision_request)
        for one, text in await turn(2 * number + 2):
            revision = without_preamble(text)
            one.rounds.append(Round(principle_id=one.drawn[number].id, critique=one.critique, revision=revision))
            one.chat = _said(one.chat, "assistant", revision)
    return [
        Chain(prompt=prompt, first=one.first, rounds=tuple(one.rounds), is_cut=one.is_cut)
        for prompt, one in zip(prompts, begun, strict=True)
    ]


@dataclass(slots=True, kw_only=True)
class _Begun:
    """A chain that is being written."""

    chat: Prompt
    drawn: list[Principle]
    first: str = ""
    critique: str = ""
    rounds: list[Round] = field(default_factory=list)
    is_cut: bool = False


def without_preamble(text: str) -> str:
    """The revision itself.

    >>> without_preamble("Sure, here is a kinder version:\\n\\nI am happy to help.")
    'I am happy to help.'
    >>> without_preamble("Here: take the bus.")
    'Here: take the bus.'
    """
    return PREAMBLE.sub("", text, count=1).strip()


def drawn_principles(
    prompt: Prompt, constitution: Constitution, rounds: int, seed: int, critique: bool
) -> list[Principle]:
    """One for each round, among those that apply to the prompt and have the requests; the same for the same prompt and
    seed. Raises InputError where there is none."""
    fitting = [
        principle
        for principle in constitution.principles
        if (principle.critique_request or not critique) and principle.revision_request and principle.applies_if(prompt)
    ]
    if not fitting:
        needed = "critique_request and revision_request" if critique else "revision_request"
        raise InputError(
            f"no principle with {needed} applies to the prompt {prompt.prompt_id} "
            f"({prompt.messages[-1].content[:60]!r}), expected one; add it to the constitution, or leave the prompt out"
        )
    rng, found = random.Random(f"{seed}-{prompt.prompt_id}"), list[Principle]()
    while len(found) < rounds:
        found += rng.sample(fitting, min(len(fitting), rounds - len(found)))
    return found


def _after_examples(chat: Prompt, drawn: Sequence[Principle], shots: int) -> Prompt:
    """The conversation behind revised examples of its principles; a system turn stays first."""
    shown: list[Message] = []
    for principle in {one.id: one for one in drawn}.values() if shots else ():
        for example in principle.examples[:shots]:
            shown += [
                Message(role="user", content=example.prompt),
                Message(role="assistant", content=example.bad),
                Message(role="user", content=principle.revision_request),
                Message(role="assistant", content=example.good),
            ]
    system = [message for message in chat.messages[:1] if message.role == "system"]
    return replace(chat, messages=(*system, *shown, *chat.messages[len(system) :]))


def _said(chat: Prompt, role: str, text: str) -> Prompt:
    """The conversation with one more turn. A model may say nothing, which a template may refuse."""
    turn = Message(role=role, content=text.strip() or "(nothing)")  # type: ignore[arg-type]
    return replace(chat, messages=(*chat.messages, turn))


def _seed(seed: int, turn: int) -> int:
    """Of one turn of all chains."""
    return seed * 1009 + turn
