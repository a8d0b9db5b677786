"""How feedback is asked for and turned into a reward."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FeedbackConfig(BaseModel):
    """`FeedbackConfig(task="pairwise", comparisons=2)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["pointwise", "pairwise"] = "pointwise"
    """Yes/no about each answer, or which of two answers of a group is better (asked in both orders)."""
    template: Literal["compact", "assistant"] = "assistant"
    """Fixed words around the data: `compact` for tiny models, `assistant` for real ones."""
    principles_per_group: int = Field(0, ge=0)
    """Principles drawn at random for each group among those that apply; 0 asks about all of them."""
    comparisons: int = Field(1, ge=1)
    """Pairwise: how many of its neighbours in the group each answer is compared with."""
    aggregation: Literal["mean", "min"] = "mean"
    """How the principles' margins become one reward: weighted mean, or the worst one."""
    margin_clip: float = Field(3.0, gt=0)
    """Margins are clipped to this many nats before they are aggregated: no principle buys off another."""
    temperature: float = Field(1.0, gt=0)
    """Margins are divided by it (calibration)."""
    min_mass: float = Field(0.5, gt=0, le=1)
    """A judge that puts less probability than this on its answer labels has said nothing."""
    tie_band: float = Field(0.1, ge=0)
    """A margin of fewer nats than this is a tie; it keeps its number."""
    min_valid: int = Field(2, ge=1)
    """A group with fewer labelled answers than this is dropped and replaced."""
    batch_questions: int = Field(256, ge=1)
    """Questions sent to the judge together at most."""
    batch_tokens: int = Field(65536, ge=1)
    """Prompt tokens sent to the judge together at most."""
    batch_age_ms: float = Field(5.0, ge=0)
    """A question waits this long for company while the judge is busy."""
    cache_entries: int = Field(200_000, ge=0)
    """Verdicts that the exact cache keeps; 0 turns it off."""
