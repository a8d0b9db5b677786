"""A reward model taught by preference pairs, centred, calibrated and tested on pairs of prompts that it was not taught.

Later stages take it as their judge: `judge = "reward_model"`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cluster.align.base import AlignStage, Job
from learners.core.config import CourseConfig, RankSettings
from solon.files.marks import ModelName, PromptsPath


class RewardLearnConfig(RankSettings, CourseConfig):
    """How a reward model learns."""

    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate of the backbone (AdamW)."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    head_learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of the scalar head, which starts from nothing."""
    threads: int = Field(1, ge=1)
    """CPU threads of one process."""


class RewardModelStage(AlignStage):
    """`{ type = "reward_model", learn = { epochs = 1 } }`"""

    kind: ClassVar[str] = "reward_model"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "preferences")
    makes: ClassVar[tuple[str, ...]] = ("reward_model",)
    code: ClassVar[tuple[str, ...]] = ("learners.rewarding", "learners.data.reading")

    type: Literal["reward_model"] = "reward_model"
    policy: ModelName = ""
    """The language model that it starts from: a stage or a model; empty: the latest policy."""
    preferences: PromptsPath = ""
    """A stage or a file; empty: the latest preferences."""
    learn: RewardLearnConfig = RewardLearnConfig()
    max_tokens: int = Field(1024, ge=8)
    """Longest conversation; pairs with a longer one are left out."""
    heldout_share: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts whose pairs only test it and fit its scale."""
    members: int = Field(1, ge=1, le=16)
    """Models of an ensemble, with heads of different seeds. Their mean is the reward."""
    pessimism: float = Field(0.0, ge=0)
    """Standard deviations between members that are taken off an answer's reward."""

    @model_validator(mode="after")
    def _pessimism_needs_members(self) -> Self:
        if self.pessimism and self.members < 2:
            raise ValueError(f"pessimism = {self.pessimism:g} with members = 1, expected several; raise members")
        return self

    def make(self, job: Job) -> None:
        self.call(job, "train")


def train(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError, RunFailedError."""
    from learners.data.reading import read_pairs, report_skipped
    from learners.networks.reward_model import PreferencePair
    from learners.objectives.reward_model import RewardModelConfig
    from learners.rewarding import Ensemble, Heldout, teach_and_save
    from solon.engines.tokens import ChatTokenizer

    settings = RewardLearnConfig(**given["learn"] | {"seed": given["seed"]})
    tokenizer = ChatTokenizer.load(given["policy"])
    read = read_pairs(given["preferences"], tokenizer, max_tokens=given["max_tokens"])
    taught: list[PreferencePair] = []
    heldout: list[Heldout] = []
    for pair, prompt, tags in zip(read.pairs, read.prompts, read.tags, strict=True):
        first, second = (*pair.prompt, *pair.first), (*pair.prompt, *pair.second)
        one = PreferencePair(first=first, second=second, p=pair.p, weight=pair.weight)
        if _is_heldout(prompt, given["heldout_share"]):
            heldout.append(Heldout(pair=one, prompt=prompt, tags=tags))
        else:
            taught.append(one)
    config = RewardModelConfig(**settings.model_dump(exclude={"threads", "num_ranks"}))
    ensemble = Ensemble(
        members=given["members"],
        pad_id=padding(tokenizer),
        pessimism=given["pessimism"],
        num_ranks=settings.num_ranks,
        threads=settings.threads,
    )
    done = teach_and_save(given["policy"], taught, heldout, config, ensemble, save_to=Path(given["out"]) / "model")
    reports = done.reports
    return {
        "pairs": reports[0].pairs,
        "skipped": report_skipped(read.skipped),
        "steps": reports[0].steps,
        "first_loss": reports[0].first_loss,
        "last_loss": reports[0].last_loss,
        "heldout_pairs": len(heldout),
        "scale": done.centre.scale,
        **done.figures,
    }


def padding(tokenizer: Any) -> int:
    """A token that ends no turn: Transformers finds the end of a conversation by the padding behind it."""
    ends = {tokenizer.eos_token_id, tokenizer.turn_end_id}
    own = tokenizer.hf.pad_token_id
    candidates = [own, tokenizer.hf.unk_token_id, *tokenizer.hf.all_special_ids, *range(tokenizer.num_tokens)]
    return next(int(one) for one in candidates if one is not None and one not in ends)


def _is_heldout(prompt: str, share: float) -> bool:
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) / 2**32 < share
