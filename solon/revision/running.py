"""Runs chains on a policy's engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from solon.constitution.constitution import Constitution
from solon.engines.base import EngineOptions
from solon.engines.lengths import engine_config
from solon.engines.sampling import SamplingOptions
from solon.engines.tokens import ChatTokenizer
from solon.files.data_config import ReadConfig
from solon.pipeline.rollout import RolloutSettings, RolloutWorker
from solon.records import Prompt
from solon.revision.chains import Chain, revise


class ReviseSettings(BaseModel):
    """How answers are revised. `ReviseSettings(rounds=2)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(1, ge=1, le=16)
    """Critiques and revisions of each answer, each under a principle of its own."""
    critique: bool = True
    """Criticise an answer before its revision. Very small models revise better at once."""
    shots: int = Field(0, ge=0, le=16)
    """Without critiques: revised examples of each principle (the constitution's `examples`) before the prompt."""
    sampling: SamplingOptions = SamplingOptions()
    """Of answers, critiques and revisions."""
    engine: EngineOptions = EngineOptions()
    """Its max_model_len must hold the whole chain."""
    data: ReadConfig = ReadConfig()
    """Column and split of the prompts."""
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _examples_have_no_critiques(self) -> Self:
        if self.critique and self.shots:
            raise ValueError("shots is above 0, and examples have no critiques; set critique = false")
        return self


async def run_chains(
    policy: str, prompts: Sequence[Prompt], constitution: Constitution, settings: ReviseSettings
) -> list[Chain]:
    """All chains; one that exceeds the length of the engine ends there. Raises InputError."""
    engine = engine_config(policy, settings.engine, seed=settings.seed)
    rollout = RolloutSettings(sampling=settings.sampling.sampling(), group_size=1, seed=settings.seed)
    worker = RolloutWorker(engine, rollout, name="policy")
    await worker.start()
    try:

        async def answer(chats: Sequence[Prompt], seed: int) -> list[str]:
            return await worker.answer(chats, seed=seed)

        tokenizer = ChatTokenizer.load(policy, trust_remote_code=engine.trust_remote_code, settings=engine)
        room = engine.max_model_len - settings.sampling.max_tokens

        def fits(chat: Prompt) -> bool:
            return len(tokenizer.encode_chat(chat.messages)) <= room

        return await revise(
            answer,
            prompts,
            constitution,
            rounds=settings.rounds,
            critique=settings.critique,
            shots=settings.shots,
            seed=settings.seed,
            fits=fits,
        )
    finally:
        await worker.close()
