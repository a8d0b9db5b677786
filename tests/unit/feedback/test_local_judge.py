"""The identity of a judge is that of the engine that was built, not of the settings that it was built by."""

from __future__ import annotations

from typing import Any

import pytest

from solon.engines.base import EngineConfig
from solon.engines.fake import FakeEngine
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges import local
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.prompting.templates import TEMPLATES
from tests.unit.feedback.test_label_run import CONSTITUTION


class NarrowEngine(FakeEngine):
    """Chose another type than the other engine."""

    @property
    def dtype(self) -> str:
        return "bfloat16"


async def identity_of(engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> JudgeIdentity:
    monkeypatch.setattr(local, "build_engine", lambda config, name: engine(name=name))
    monkeypatch.setattr(local, "require_suited", lambda *_: None)
    judge: Any = local.LocalJudge(
        EngineConfig(model="m", dtype="auto"), FeedbackConfig(template="compact"), CONSTITUTION, name="judge"
    )
    try:
        await judge.start()
    finally:
        await judge.close()
    return judge.identity


async def test_the_dtype_of_a_label_is_the_engines_own_and_judges_of_two_share_no_cache(
    monkeypatch: pytest.MonkeyPatch,
):
    assert "compact" in TEMPLATES
    wide, narrow = [await identity_of(engine, monkeypatch) for engine in (FakeEngine, NarrowEngine)]
    assert (wide.dtype, narrow.dtype) == ("float32", "bfloat16")
    assert wide.digest != narrow.digest
