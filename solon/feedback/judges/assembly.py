"""Assembles the judge that settings describe.

    engine, endpoint or programs ──▶ (with others) cascade or jury ──▶ semantic cache ──▶ the caller

A training run hosts one in a Ray actor (`solon.feedback.worker`); `solon label` opens one directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import architecture
from solon.feedback.caches.semantic import SemanticJudge
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item, Judge
from solon.feedback.judges.endpoint_judge import EndpointFile, EndpointJudge
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.judges.local import LocalJudge
from solon.feedback.judges.program_file import ProgramFile
from solon.feedback.judges.program_judge import MixedJudge, ProgramJudge
from solon.feedback.judges.reward_judge import RewardJudge
from solon.feedback.panels.cascade import Cascade
from solon.feedback.panels.jury import Jury
from solon.feedback.panels.selective import SelectiveJudge
from solon.feedback.prompting.prompts import NO_SECRET
from solon.feedback.spending.limiter import LimitsPort
from solon.models.facts import is_reward_architecture
from solon.verdicts import Verdict

Source = EngineConfig | EndpointFile | ProgramFile
"""Where a judge runs: on an engine here (a language model or a reward model), behind an endpoint, or as functions in a
process of their own."""


class HostedJudge(Judge, Protocol):
    """A judge together with its engine or endpoint."""

    async def start(self) -> JudgeIdentity:
        """Make the judge ready. Raises InputError for errors that the user must fix."""
        ...

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts computed without the caches."""
        ...

    def drain_spans(self) -> list[tuple[float, float]]:
        """(start, end) wall-clock seconds of work since the last call."""
        ...

    async def close(self) -> None:
        """Stop the engine or close the connection."""
        ...


class Panel:
    """Implements `HostedJudge` with all configured parts: further judges, the semantic cache.

    members: the judge itself first, then those named by `feedback.panel`, in that order.
    """

    def __init__(self, members: Sequence[HostedJudge], feedback: FeedbackConfig) -> None:
        self.name = members[0].name
        self._members = tuple(members)
        self._config = feedback
        self._judge: Judge = members[0]
        if feedback.cascade.judge:
            self._judge = Cascade(members, [feedback.cascade.threshold], feedback.cascade)
        elif feedback.jury.judges:
            self._judge = Jury(members, feedback.jury)
        elif feedback.select.proxy:
            judge, proxy = members
            self._judge = SelectiveJudge(judge, proxy, feedback.select, clip=feedback.margin_clip)

    async def start(self) -> JudgeIdentity:
        """The identity of the first judge; each label names the judge of its verdict."""
        identities = [await member.start() for member in self._members]
        if self._config.semantic.model:
            from solon.engines.embedding import EncoderEmbed

            embed = await asyncio.to_thread(EncoderEmbed, self._config.semantic.model)
            self._judge = SemanticJudge(self._judge, embed, self._config.semantic)
        return identities[0]

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`."""
        return await self._judge.judge(items)

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """From the first judge only."""
        return await self._members[0].judge_fresh(items)

    def drain_spans(self) -> list[tuple[float, float]]:
        """(start, end) of the work of all members since the last call, seconds since the epoch."""
        return sorted(span for member in self._members for span in member.drain_spans())

    async def close(self) -> None:
        """Close all members."""
        for member in self._members:
            await member.close()


def host_judge(
    source: Source,
    feedback: FeedbackConfig,
    constitution: Constitution,
    *,
    name: str,
    others: Sequence[Source] = (),
    secret: bytes = NO_SECRET,
    port: LimitsPort | None = None,
) -> HostedJudge:
    """Not started yet. others: sources of the judges in `feedback.panel`, in that order. port: the limits of the first
    judge's endpoint, if several processes share them."""
    assert len(others) == len(feedback.panel), f"{len(others)} sources for {len(feedback.panel)} further judges"
    members = [_host(source, feedback, constitution, name=name, secret=secret, port=port)]
    settings = feedback.model_copy(update={"calibration": feedback.cascade.calibration})
    for number, other in enumerate(others, start=1):
        members.append(_host(other, settings, constitution, name=f"{name}.{number}", secret=secret, port=None))
    judge = members[0] if not others and not feedback.semantic.model else Panel(members, feedback)
    if not feedback.programs:
        return judge
    programs = ProgramJudge(ProgramFile.load(feedback.programs), constitution, name=f"{name}.programs", alone=False)
    return MixedJudge(judge, programs)


def _host(
    source: Source,
    feedback: FeedbackConfig,
    constitution: Constitution,
    *,
    name: str,
    secret: bytes,
    port: LimitsPort | None,
) -> HostedJudge:
    if isinstance(source, ProgramFile):
        return ProgramJudge(source, constitution, name=name)
    if isinstance(source, EndpointFile):
        return EndpointJudge(source, feedback, constitution, name=name, secret=secret, port=port)
    if is_reward_architecture(architecture(source)):
        return RewardJudge(source, feedback, constitution, name=name)
    return LocalJudge(source, feedback, constitution, name=name, secret=secret)
