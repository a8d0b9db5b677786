"""The judge that a name stands for: a model whose engine runs here, or an endpoint described by a file."""

from __future__ import annotations

from typing import Protocol

from solon.constitution import Constitution
from solon.engines.base import EngineConfig
from solon.feedback.config import FeedbackConfig
from solon.feedback.endpoint_judge import EndpointFile, EndpointJudge
from solon.feedback.identity import JudgeIdentity
from solon.feedback.judging import Judge
from solon.feedback.limiter import LimitsPort
from solon.feedback.local import LocalJudge
from solon.feedback.prompts import NO_SECRET


class HostedJudge(Judge, Protocol):
    """A judge together with what it runs on."""

    async def start(self) -> JudgeIdentity:
        """Ready to judge. Raises InputError for what the user must mend."""
        ...

    @property
    def asked_twice(self) -> float: ...

    def drain_spans(self) -> list[tuple[float, float]]:
        """(start, end) wall-clock seconds of work since the last call."""
        ...

    async def close(self) -> None: ...


def host_judge(
    source: EngineConfig | EndpointFile,
    feedback: FeedbackConfig,
    constitution: Constitution,
    *,
    name: str,
    secret: bytes = NO_SECRET,
    port: LimitsPort | None = None,
) -> HostedJudge:
    """Not started yet."""
    if isinstance(source, EndpointFile):
        return EndpointJudge(source, feedback, constitution, name=name, secret=secret, port=port)
    return LocalJudge(source, feedback, constitution, name=name, secret=secret)
