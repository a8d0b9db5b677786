"""Settings of direct alignment. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learners.core.config import CourseConfig, NetworkConfig, RankSettings, RewardSettings, Settings, TrainerConfig


class PreferenceSettings(Settings):
    """The loss of preference pairs, from a file or from the groups of a run."""

    beta: float = Field(0.1, gt=0)
    """How dearly the policy pays for leaving the reference: the larger, the closer it stays."""
    preference_loss: Literal["sigmoid", "sigmoid_norm", "ipo"] = "sigmoid"
    """`sigmoid` is DPO, `sigmoid_norm` DPO of log-ratios per token, `ipo` a squared error of log-ratios per token."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the labels that is assumed to be wrong."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the cross-entropy of the better answer, per token: holds its probability up."""


class OnlinePairs(PreferenceSettings):
    """Which answers of a labelled group are compared."""

    pairs: Literal["extremes", "all"] = "extremes"
    """`extremes`: the best with the worst answer of a group; `all`: every two, with one weight for the group."""
    tie: float = Field(0.05, ge=0, lt=0.5)
    """Pairs whose better answer is preferred with a probability below 1/2 + tie are left out."""


class OnlineDPOConfig(OnlinePairs, RewardSettings, TrainerConfig):
    """How a policy learns from pairs of answers of labelled groups. `OnlineDPOConfig(beta=0.1)`"""


class DirectConfig(PreferenceSettings, RankSettings, NetworkConfig, CourseConfig):
    """How a policy learns from a preference data set. `DirectConfig(beta=0.1, learning_rate=5e-6)`"""

    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate (AdamW)."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    batch: int = Field(16, ge=1)
    """Pairs of one optimiser step."""


class RatingConfig(RankSettings, NetworkConfig, CourseConfig):
    """How a policy learns from rated answers. `RatingConfig(beta=0.1, desirable=1.0)`"""

    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate (AdamW)."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    batch: int = Field(32, ge=2)
    """Answers of one optimiser step; the anchor is estimated over them."""
    beta: float = Field(0.1, gt=0)
    """How dearly the policy pays for leaving the reference."""
    desirable: float = Field(1.0, gt=0)
    """Weight of good answers. desirable times their number over undesirable times the number of bad ones should be
    within 1 to 4/3."""
    undesirable: float = Field(1.0, gt=0)
    """Weight of bad answers."""
