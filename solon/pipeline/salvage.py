"""Saves the tokens that a lost engine has written: another engine continues from them.

An engine reports only the token ids that its answers gained since the last report: one query of the engine covers all
its groups, however many calls they came with. The ledger keeps the parts of a group; they are joined when the group is
granted again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from solon.engines.base import Completion
from solon.records import FinishReason, Salvage

SALVAGE_TOKENS = 64
"""Number of new tokens from which a group is reported again: fewer are not worth the message."""


@dataclass(slots=True, eq=False)
class Followed:
    """A group that is being written. `request_ids`: of its answers, in order; `report` receives the new tokens, or the
    error that ended the engine."""

    ordinal: int
    attempt: int
    request_ids: tuple[str, ...]
    report: Callable[[Salvage | BaseException], None]
    gained: list[tuple[int, Completion]] = field(default_factory=list)
    """(answer, its new tokens)"""
    num_tokens: int = 0

    def take(self) -> Salvage:
        """The tokens gained since the last call."""
        gained, self.gained, self.num_tokens = sorted(self.gained, key=lambda item: item[0]), [], 0
        segments: list[tuple[tuple[int, int], ...]] = [()] * len(self.request_ids)
        reasons: list[FinishReason] = ["abort"] * len(self.request_ids)
        for answer, new in gained:
            segments[answer] = joined_segments(segments[answer], new.segments)
            reasons[answer] = new.finish_reason
        return Salvage(
            ordinal=self.ordinal,
            attempt=self.attempt,
            token_ids=np.concatenate([new.token_ids for _, new in gained]),
            logprobs=np.concatenate([new.logprobs for _, new in gained]),
            segments=tuple(segments),
            finish_reasons=tuple(reasons),
        )


class Reporter:
    """Checks the followed groups for new tokens every `every_s` seconds; 0: never.

    `news`: the output of every request since the last call (`EngineRunner.news`).
    """

    def __init__(self, news: Callable[[], Awaitable[list[Completion]]], *, every_s: float) -> None:
        self._news = news
        self._every_s = every_s
        self._answers: dict[str, tuple[Followed, int]] = {}
        self._looking: asyncio.Task[None] | None = None

    def follow(self, group: Followed) -> None:
        if not self._every_s:
            return
        self._answers |= {request_id: (group, answer) for answer, request_id in enumerate(group.request_ids)}
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())

    def leave(self, group: Followed) -> None:
        """The group is finished or abandoned."""
        for request_id in group.request_ids:
            self._answers.pop(request_id, None)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            if not self._answers:
                return
            try:
                self._sort(await self._news())
            except Exception as error:
                for group in {id(group): group for group, _ in self._answers.values()}.values():
                    group.report(error)
                return

    def _sort(self, news: Sequence[Completion]) -> None:
        for new in news:
            group, answer = self._answers.get(new.request_id, (None, 0))
            if group is None:
                continue
            group.gained.append((answer, new))
            group.num_tokens += len(new.token_ids)
        for group in {id(group): group for group, _ in self._answers.values()}.values():
            if group.num_tokens >= SALVAGE_TOKENS:
                group.report(group.take())


def joined(parts: Sequence[Salvage], group_size: int) -> list[Completion | None]:
    """The answers of a group as far as they were written, [G]; None: not begun; `finish_reason` "abort": to be
    continued."""
    answers: list[Completion | None] = [None] * group_size
    for part in parts:
        start = 0
        for answer, (segments, reason) in enumerate(zip(part.segments, part.finish_reasons, strict=True)):
            end = start + sum(count for _, count in segments)
            if end > start or reason != "abort":
                new = Completion(
                    request_id="",
                    token_ids=part.token_ids[start:end],
                    logprobs=part.logprobs[start:end],
                    segments=segments,
                    finish_reason=reason,
                )
                answers[answer] = continued(answers[answer], new)
            start = end
    return answers


def continued(begun: Completion | None, after: Completion | None) -> Completion | None:
    """Join the first part of an answer and its continuation."""
    if begun is None or after is None:
        return begun if after is None else after
    return replace(
        after,
        token_ids=np.concatenate([begun.token_ids, after.token_ids]),
        logprobs=np.concatenate([begun.logprobs, after.logprobs]),
        segments=joined_segments(begun.segments, after.segments),
    )


def joined_segments(
    first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """Concatenate runs of versions.

    >>> joined_segments(((3, 10), (4, 2)), ((4, 5),))
    ((3, 10), (4, 7))
    """
    if first and second and first[-1][0] == second[0][0]:
        return (*first[:-1], (first[-1][0], first[-1][1] + second[0][1]), *second[1:])
    return (*first, *second)
