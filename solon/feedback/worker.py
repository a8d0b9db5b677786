"""Labels groups: a judge and the labeler. A Ray actor hosts this class."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from solon.constitution.constitution import Constitution
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.judges.assembly import Source, host_judge
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.labeler import Labeler
from solon.feedback.prompting.prompts import NO_SECRET
from solon.feedback.quality.position import pairs_of
from solon.feedback.spending.limiter import LimitsPort
from solon.protocols import LabelReport
from solon.records import Feedback, Group, Span
from solon.verdicts import Verdict


class JudgeWorker:
    """`report, feedback = await worker.label(group)`; concurrent callers share engine batches."""

    def __init__(
        self,
        source: Source,
        feedback: FeedbackConfig,
        constitution: Constitution,
        *,
        name: str,
        others: Sequence[Source] = (),
        secret: bytes = NO_SECRET,
        port: LimitsPort | None = None,
    ) -> None:
        self.name = name
        self._judge = host_judge(source, feedback, constitution, name=name, others=others, secret=secret, port=port)
        self._labeler = Labeler(self._judge, config=feedback, constitution=constitution)
        self._under_way = 0
        self._moved_at = time.monotonic()

    async def start(self) -> JudgeIdentity:
        """Build and warm up the engine. Raises InputError when the tokenizer splits an answer label."""
        return await self._judge.start()

    async def label(self, group: Group) -> tuple[LabelReport, Feedback]:
        """Label all rollouts of a group."""
        if not self._under_way:
            self._moved_at = time.monotonic()
        self._under_way += 1
        try:
            feedback = await self._labeler.label(group)
        finally:
            self._under_way -= 1
            self._moved_at = time.monotonic()
        return self._report(feedback), feedback

    async def heartbeat(self) -> float:
        """Seconds for which there were groups to label and none was finished."""
        return time.monotonic() - self._moved_at if self._under_way else 0.0

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts computed without the caches."""
        return await self._judge.judge_fresh(items)

    async def close(self) -> None:
        """Close the judge."""
        await self._judge.close()

    def _report(self, feedback: Feedback) -> LabelReport:
        labels = feedback.labels
        given = [r for r in feedback.rewards_G if r is not None]
        invalid = Counter(str(label.status) for label in labels if not label.status.valid)
        return LabelReport(
            ordinal=feedback.ordinal,
            attempt=feedback.attempt,
            num_rollouts=len(feedback.rewards_G),
            num_valid=len(given),
            reward_mean=sum(given) / len(given) if given else None,
            labels=len(labels),
            invalid=invalid.total(),
            questions=sum(label.verdict.questions for label in labels),
            cache_hits=sum(label.verdict.cache_hits for label in labels),
            prompt_tokens=sum(label.verdict.prompt_tokens for label in labels),
            cached_tokens=sum(label.verdict.cached_tokens for label in labels),
            nbytes=400 * len(labels),
            invalid_by_status=tuple(sorted(invalid.items())),
            pairs=pairs_of(labels),
            spans=tuple(
                Span(lane="label", worker=self.name, name="judge", start_s=start, end_s=end)
                for start, end in self._judge.drain_spans()
            ),
        )
