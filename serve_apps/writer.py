"""Models that write critiques and revisions by a constitution, and answers.

The conversations are those of `solon.revision.chains`: the answer, a critique request of one principle, the critique,
its revision request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from serve_apps.config import WriterSection
from serve_apps.policy_config import PolicySection
from serve_apps.policy_service import Bound, Open, ServedPolicy, open_server
from serve_apps.web import ItemError
from solon.client.wire import Answered, Asked, Critique, Revised, Revision, TextUsage
from solon.constitution.constitution import Constitution, Principle
from solon.errors import InputError
from solon.files.prompts import parse_prompt
from solon.records import Prompt
from solon.revision.chains import drawn_principles, without_preamble

Turns = list[dict[str, str]]
T = TypeVar("T")
Job = Callable[[Bound], Coroutine[Any, Any, tuple[T, TextUsage]]]
"""The work for one item, with the server that does it."""


class Writer:
    """One model that writes, with the principles by which it does."""

    def __init__(self, name: str, section: WriterSection, folder: Path, open_: Open | None = None) -> None:
        self.name = name
        self.constitution = Constitution.load(section.constitution) if section.constitution else None
        self._sampling = section.sampling
        policy = PolicySection(model=section.model, engine=section.engine, allow_uncertified=section.allow_uncertified)
        self.policy = ServedPolicy(name, policy, folder, open_ or open_server, certified_as=("critic",))

    def critiques(self, items: Sequence[Answered]) -> list[Job[Critique]]:
        """The work of a critique of each answer. Raises ItemError, InputError without a constitution; the work raises
        ItemError."""
        begun = [self._begin(number, item, critique=True) for number, item in enumerate(items)]

        async def critique(bound: Bound, number: int) -> tuple[Critique, TextUsage]:
            turns, principle = begun[number]
            text, is_cut, spent = await self._say(bound, number, turns)
            return Critique(principle=principle.id, critique=text, is_cut=is_cut), spent

        return [partial(critique, number=number) for number in range(len(items))]

    def revisions(self, items: Sequence[Revised]) -> list[Job[Revision]]:
        """The work of a revision of each answer, after a critique unless the item has one or wants none. Raises as
        above."""
        for number, item in enumerate(items):
            self._begin(number, item, critique=_wants_critique(item))
        return [partial(self._revision, number=number, item=item) for number, item in enumerate(items)]

    async def together(self, jobs: Sequence[Job[T]]) -> tuple[list[T], TextUsage]:
        """All results, in order, and what they cost. Raises ItemError, UnavailableError."""
        async with self.policy.bound() as bound:
            found = await together([job(bound) for job in jobs])
        return [one for one, _ in found], total(used for _, used in found)

    @asynccontextmanager
    async def as_made(self, jobs: Sequence[Job[T]]) -> AsyncIterator[AsyncIterator[tuple[int, T, TextUsage]]]:
        """Results as they are made, each with its place. Raises as above."""

        async def numbered(bound: Bound, number: int) -> tuple[int, T, TextUsage]:
            return (number, *await jobs[number](bound))

        async def found(tasks: Sequence[asyncio.Task[tuple[int, T, TextUsage]]]) -> AsyncIterator[Any]:
            for task in asyncio.as_completed(tasks):
                yield await task

        async with self.policy.bound() as bound:
            tasks = [asyncio.ensure_future(numbered(bound, number)) for number in range(len(jobs))]
            try:
                yield found(tasks)
            finally:
                await _ended(tasks)

    async def _revision(self, bound: Bound, number: int, item: Revised) -> tuple[Revision, TextUsage]:
        wants_critique = _wants_critique(item)
        turns, principle = self._begin(number, item, critique=wants_critique)
        spent, critique = [], item.critique or ""
        if item.critique is None:
            critique, _, used = await self._say(bound, number, turns)
            spent.append(used)
        if wants_critique:
            turns.append({"role": "assistant", "content": critique or "(nothing)"})
            turns.append({"role": "user", "content": principle.revision_request})
        text, is_cut, used = await self._say(bound, number, turns)
        spent.append(used)
        made = Revision(principle=principle.id, critique=critique, revision=without_preamble(text), is_cut=is_cut)
        return made, total(spent)

    def _begin(self, number: int, item: Answered, *, critique: bool) -> tuple[Turns, Principle]:
        """The conversation up to the first request of the principle."""
        prompt = _prompt(number, item)
        principle = self._principle(number, item, prompt, critique)
        turns = [{"role": turn.role, "content": turn.content} for turn in item.messages]
        turns.append({"role": "assistant", "content": item.answer or "(nothing)"})
        turns.append(
            {"role": "user", "content": principle.critique_request if critique else principle.revision_request}
        )
        return turns, principle

    def _principle(self, number: int, item: Answered, prompt: Prompt, critique: bool) -> Principle:
        if self.constitution is None:
            raise InputError(f"the writer {self.name} has no constitution, expected one for critiques and revisions")
        if not item.principle:
            try:
                return drawn_principles(prompt, self.constitution, 1, 0, critique)[0]
            except InputError as error:
                raise ItemError(f"items.{number}", str(error)) from None
        found = next((one for one in self.constitution.principles if one.id == item.principle), None)
        if found is None or not found.revision_request or (critique and not found.critique_request):
            usable = [one.id for one in self.constitution.principles if one.revision_request]
            raise ItemError(
                f"items.{number}.principle",
                f"got the principle {item.principle!r}, expected one with requests: {', '.join(usable) or 'none has'}",
            )
        return found

    async def _say(self, bound: Bound, number: int, turns: Turns) -> tuple[str, bool, TextUsage]:
        options = self._sampling.model_dump()
        options["stop"] = list(options["stop"])
        try:
            reply = await bound.server.chat(turns, **options)
        except ValueError as error:
            raise ItemError(f"items.{number}", str(error)) from None
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        spent = TextUsage(
            prompt_tokens=usage.get("prompt_tokens", 0), completion_tokens=usage.get("completion_tokens", 0)
        )
        return (choice["message"].get("content") or "").strip(), choice.get("finish_reason") == "length", spent


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results. When one fails or the caller leaves, the others end too: their room is given to other callers."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _ended(tasks)


async def _ended(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _wants_critique(item: Revised) -> bool:
    return item.critique is None or bool(item.critique)


def _prompt(number: int, item: Asked) -> Prompt:
    row = {"prompt": [{"role": turn.role, "content": turn.content} for turn in item.messages], "tags": list(item.tags)}
    try:
        return parse_prompt(row)
    except ValueError as error:
        raise ItemError(f"items.{number}.messages", str(error)) from None


def total(spent: Iterable[TextUsage]) -> TextUsage:
    """What several texts cost."""
    found = list(spent)
    return TextUsage(
        prompt_tokens=sum(one.prompt_tokens for one in found),
        completion_tokens=sum(one.completion_tokens for one in found),
    )
