"""A judge whose engine runs in this process: engine, batcher, caches, prompts and calibration.

    judge = await open_judge(EngineConfig(model="judge"), FeedbackConfig(), constitution, name="judge-0")
    verdicts = await judge.judge(items)
    await judge.close()

A training run hosts one in a Ray actor (`solon.feedback.worker`); `solon label`, `solon check --judge` and `solon
judges` open theirs directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
from solon.engines.runner import EngineRunner
from solon.feedback.caches.cache import open_cache
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.judges.batching import Batcher
from solon.feedback.judges.engine_ask import EngineAsk
from solon.feedback.judges.engine_judge import CalibrateTask, EngineJudge
from solon.feedback.judges.identity import JudgeIdentity, identify
from solon.feedback.prompting.prompts import NO_SECRET, JudgePrompts
from solon.feedback.prompting.templates import TEMPLATES, require_suited
from solon.feedback.questions import Question
from solon.verdicts import Verdict


class LocalJudge:
    """Implements `Judge`. `await start()` before the first verdict.

    secret: keys the nonces that fence texts; runs with the same secret can share cached verdicts.
    """

    def __init__(
        self,
        engine: EngineConfig,
        feedback: FeedbackConfig,
        constitution: Constitution,
        *,
        name: str,
        secret: bytes = NO_SECRET,
    ) -> None:
        self.name = name
        self.runner = EngineRunner(lambda: build_engine(engine, name=name), name=name)
        self._engine_config = engine
        self._config = feedback
        self._constitution = constitution
        self._secret = secret

    async def start(self) -> JudgeIdentity:
        """Build and warm up the engine. Raises InputError when the tokenizer splits an answer label, or when the
        calibration belongs to another judge."""
        await self.runner.ready()
        config, template = self._config, TEMPLATES[self._config.template]
        require_suited(template, self.runner.tokenizer.num_tokens)
        self.prompts = JudgePrompts(
            template,
            self.runner.tokenizer,
            preamble=self._constitution.preamble,
            secret=self._secret,
            frame=self.runner.tokenizer.thought_frame() if config.thought_tokens else None,
        )
        self.identity = identify(
            self._engine_config,
            name=self.name,
            dtype=self.runner.dtype,
            tokenizer_digest=self.runner.tokenizer.digest,
            template_id=template.template_id,
            constitution_id=self._constitution.id,
            constitution_hash=self._constitution.hash,
            critique_tokens=config.critique_tokens,
            thought_tokens=config.thought_tokens,
        )
        self.engine = EngineAsk(
            self.runner, self.prompts, critique_tokens=config.critique_tokens, thought_tokens=config.thought_tokens
        )
        self.batcher = Batcher(self.engine, config)
        self.cache = open_cache(self.batcher.ask, config.cache, judge_digest=self.identity.digest)
        settings: dict[str, Any] = {
            "name": self.name,
            "prompts": self.prompts,
            "max_prompt_tokens": self._engine_config.max_model_len - 1 - config.written_tokens,
            "calibrate": load_calibration(config, self.identity),
        }
        self._judge = EngineJudge(self.cache.ask, config=config, **settings)
        self._fresh = EngineJudge(self.batcher.ask, config=in_both_orders(config), **settings)
        warm_up = self.prompts.pointwise((), "warm up", "warm up ?")
        await self.engine.warm_up(Question(warm_up, self.prompts.bool_ids))
        self.engine.calls = 0
        self.runner.drain_spans()
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
        """(start, end) wall-clock seconds of the engine's steps since the last call."""
        return self.runner.drain_spans()

    async def close(self) -> None:
        """End the engine and write the cache's content to disk."""
        await self.runner.close()
        if hasattr(self, "cache"):
            await self.cache.close()


async def open_judge(
    engine: EngineConfig,
    feedback: FeedbackConfig,
    constitution: Constitution,
    *,
    name: str,
    secret: bytes = NO_SECRET,
) -> LocalJudge:
    """A started judge. Close it when done."""
    judge = LocalJudge(engine, feedback, constitution, name=name, secret=secret)
    try:
        await judge.start()
    except BaseException:
        await judge.close()
        raise
    return judge


def in_both_orders(config: FeedbackConfig) -> FeedbackConfig:
    """The settings with both orders, so that a verdict does not depend on earlier questions."""
    return config.model_copy(update={"swap": config.swap.model_copy(update={"orders": "both"})})


def load_calibration(config: FeedbackConfig, identity: JudgeIdentity) -> CalibrateTask | None:
    """The configured calibration, or None. Raises InputError when it was made for another judge, quantisation,
    template or constitution."""
    if not config.calibration:
        return None
    from solon.feedback.quality.calibration_book import CalibrationBook

    book = CalibrationBook.load(config.calibration, identity=identity.calibrated_for)
    book.require(config.task)
    return book.apply
