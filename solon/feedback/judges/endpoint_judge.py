"""A judge behind an OpenAI-compatible endpoint, described by a file.

# big-judge.toml
[endpoint]
base_url = "https://judge.example/v1"
model = "big-judge"
api_key_env = "JUDGE_API_KEY"
usd_per_million_input = 0.15
[limits]
requests_per_minute = 600
max_usd = 5.0
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.feedback.caches.cache import open_cache
from solon.feedback.config import FeedbackConfig
from solon.feedback.endpoint.config import EndpointConfig
from solon.feedback.interfaces import Item
from solon.feedback.judges.engine_judge import EngineJudge
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.prompting.prompts import NO_SECRET
from solon.feedback.prompting.templates import TEMPLATES, require_suited
from solon.feedback.prompting.text_prompts import TextPrompts
from solon.feedback.questions import Answer, Question
from solon.feedback.spending.limiter import AsyncLimits, Limiter, LimitsPort
from solon.feedback.spending.limits import LimitsConfig
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid
from solon.verdicts import Verdict


class EndpointFile(BaseModel):
    """`EndpointFile.load("big-judge.toml").endpoint.model`"""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    endpoint: EndpointConfig
    limits: LimitsConfig = LimitsConfig()
    max_model_len: int = Field(8192, ge=256)
    """Longest question in tokens; the texts of longer ones are cut."""

    @staticmethod
    def names(judge: str) -> bool:
        """Whether a judge's name is that of such a file."""
        return judge.endswith(".toml")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises InputError; a key in the wrong field is not shown."""
        raw = read_toml(Path(path), what="endpoint file")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"endpoint file {path}: {describe_invalid(cls, error)}") from None


class EndpointJudge:
    """Implements `Judge`. `await start()` before the first verdict.

    port: the limits, if several processes share them; none: limits of this process alone.
    """

    def __init__(
        self,
        file: EndpointFile,
        feedback: FeedbackConfig,
        constitution: Constitution,
        *,
        name: str,
        secret: bytes = NO_SECRET,
        port: LimitsPort | None = None,
    ) -> None:
        self.name = name
        self._file = file
        self._config = feedback
        self._constitution = constitution
        self._secret = secret
        self._port = port
        self._spans: list[tuple[float, float]] = []

    async def start(self) -> JudgeIdentity:
        """Raises InputError when the key is missing, or when critiques or thoughts are configured, which endpoints do
        not write."""
        from solon.feedback.endpoint.ask import EndpointAsk
        from solon.feedback.judges.local import in_both_orders, load_calibration

        refuse_written(self._config)
        template, endpoint = TEMPLATES[self._config.template], self._file.endpoint
        require_suited(template, None)
        self.identity = JudgeIdentity(
            judge_id=self.name,
            model=endpoint.model,
            weights_digest=endpoint.digest,
            quantization="unknown",
            engine="openai",
            engine_version="unknown",
            dtype="unknown",
            tokenizer_digest="unknown",
            template_id=template.template_id,
            constitution_id=self._constitution.id,
            constitution_hash=self._constitution.hash,
        )
        self._owned = None if self._port is not None else AsyncLimits(self._file.limits)
        if self._owned is not None:
            await self._owned.start()
        self._limiter = Limiter(self._port or self._owned, self._file.limits)  # type: ignore[arg-type]
        self.endpoint = EndpointAsk(endpoint, self._limiter)
        # Directly behind the cache: the endpoint bounds its requests itself, and a batch would wait for its slowest
        # question.
        self.cache = open_cache(self._timed, self._config.cache, judge_digest=self.identity.digest)
        settings: dict[str, Any] = {
            "name": self.name,
            "prompts": TextPrompts(
                template,
                preamble=self._constitution.preamble,
                secret=self._secret,
                escape=endpoint.escape_markers,
                markers=endpoint.markers,
            ),
            "max_prompt_tokens": self._file.max_model_len,
            "calibrate": load_calibration(self._config, self.identity),
        }
        self._judge = EngineJudge(self.cache.ask, config=self._config, **settings)
        self._fresh = EngineJudge(self._timed, config=in_both_orders(self._config), **settings)
        return self.identity

    @property
    def asked_twice(self) -> float:
        """Share of the pairs that were asked in both orders."""
        bias = self._judge.bias
        return bias.asked_twice / bias.asked if bias.asked else 0.0

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`."""
        return await self._judge.judge(items)

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts computed without the cache, every pair in both orders."""
        return await self._fresh.judge(items)

    def drain_spans(self) -> list[tuple[float, float]]:
        """(start, end) wall-clock seconds of requests to the endpoint since the last call."""
        spans, self._spans = self._spans, []
        return spans

    async def close(self) -> None:
        """Closes connections and, if they belong to this process, the limits."""
        if hasattr(self, "cache"):
            await self.cache.close()
            await self.endpoint.aclose()
            await self._limiter.close()
            if self._owned is not None:
                await self._owned.close()

    async def _timed(self, questions: Sequence[Question]) -> list[Answer]:
        start = time.time()
        try:
            return await self.endpoint(questions)
        finally:
            self._spans.append((start, time.time()))


def refuse_written(config: FeedbackConfig) -> None:
    """Raises InputError for critiques and thoughts, which endpoints do not write."""
    for name in ("critique_tokens", "thought_tokens"):
        if getattr(config, name):
            raise InputError(f"feedback.{name} needs a judge whose engine runs here; set it to 0")
