"""Judges of services in tests: they like long answers, and can be slow or lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from serve_apps.config import ServiceFile
from serve_apps.service import FeedbackService
from solon.errors import RunFailedError
from solon.feedback.interfaces import Item
from solon.feedback.judges.identity import JudgeIdentity
from solon.verdicts import Status, Verdict

CONSTITUTION = """
schema: solon.constitution/v1
id: mine
version: "1"
principles:
  - {id: long, pointwise_question: "Is it long?", pairwise_question: "Which is longer?"}
  - {id: kind, applies_if: {tags_any: [kind]}, pointwise_question: "Kind?", pairwise_question: "Kinder?"}
"""


class StubJudge:
    """Implements `HostedJudge`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: list[Item] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.lost = False
        self.closed = False

    async def start(self) -> JudgeIdentity:
        texts = {name: "stub" for name in JudgeIdentity.__dataclass_fields__ if not name.endswith("_tokens")}
        return JudgeIdentity(**texts)

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        await self.gate.wait()
        if self.lost:
            raise RunFailedError("the engine ended")
        self.items += items
        return [self._verdict(item) for item in items]

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        return await self.judge(items)

    def drain_spans(self) -> list[tuple[float, float]]:
        return []

    async def close(self) -> None:
        self.closed = True

    def _verdict(self, item: Item) -> Verdict:
        if "broken" in item.answers:
            return Verdict(status=Status.LOW_MASS, margin=None, mass=0.1, judge=self.name)
        lengths = [len(answer) for answer in item.answers]
        margin = float(lengths[0] - lengths[1]) if len(lengths) == 2 else float(lengths[0] - 5)
        status = Status.TIE if abs(margin) < 0.1 else Status.OK
        return Verdict(status=status, margin=margin, mass=1.0, judge=self.name, questions=1, prompt_tokens=10)


def service(folder: Path, text: str = "") -> tuple[FeedbackService, list[StubJudge]]:
    """A service with the stub judges `default` and `other`, in the order in which they are made."""
    (folder / "mine.yaml").write_text(CONSTITUTION)
    (folder / "service.toml").write_text(
        text + '[judges.default]\nmodel = "a"\nconstitution = "mine.yaml"\n'
        '[judges.other]\nmodel = "b"\nconstitution = "mine.yaml"\n'
    )
    made: list[StubJudge] = []

    def host(name: str, *_: object) -> StubJudge:
        made.append(StubJudge(name))
        return made[-1]

    return FeedbackService(ServiceFile.load(folder / "service.toml"), host), made
