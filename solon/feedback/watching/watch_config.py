"""What a person may choose about watching the labels of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["warn", "raise_kl", "stop"]
"""What an alarm asks for."""


class WatchConfig(BaseModel):
    """`WatchConfig(audit_share=0.02, action="stop")`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audit_share: float = Field(0.02, gt=0, le=1)
    """Share of all rollouts that gold reads, drawn uniformly."""
    audit_window: int = Field(64, ge=16)
    """Audited rollouts of one window at least; fewer make slopes of noise."""
    reference_windows: int = Field(3, ge=1)
    """The first windows of the run, which the later ones are compared with."""
    trend_windows: int = Field(5, ge=2)
    """Windows over which the slopes of reward and gold are taken."""
    near_peak: float = Field(0.8, gt=0, le=1)
    """Warn from this share of the predicted peak's distance on."""
    gap_tolerance: float = Field(0.75, ge=0)
    """A gap between reward and gold of so many standard deviations is not held against the judge: optimising any
    judge fits its noise a little."""
    gap_slack: float = Field(0.5, ge=0)
    """What the gap's CUSUM lets pass in each window, in standard errors."""
    gap_limit: float = Field(5.0, gt=0)
    """The gap's CUSUM alarms above this."""
    missing_gold: float = Field(0.05, gt=0, le=1)
    """Warn when gold or the judge has no verdict on a larger share of the audited rollouts."""
    symptom_answers: int = Field(256, ge=16)
    """Answers of one window of symptoms at least."""
    symptom_every: int = Field(5, ge=1)
    """Steps between two windows of symptoms at least."""
    psi: float = Field(0.2, gt=0)
    """Warn when the margins' stability index against the first windows exceeds this."""
    collapse_alike: float = Field(0.9, gt=0, le=1)
    """The policy has collapsed when a larger share of its answers begins alike, or answers to one prompt share more of
    their word pairs, in two windows in a row, and the first windows were well below. 1: never."""
    collapse_part: float = Field(0.2, ge=0, lt=1)
    """It has also collapsed when the length or the variety of its answers falls below this part of what it was in the
    first windows; and a principle is lost when the share of answers that obey it does, by gold. 0: never."""
    action: Action = "warn"
    """What to do when gold falls while the reward rises, when the predicted peak is behind, when the policy has
    collapsed or a principle is lost: `warn` says so, `raise_kl` pulls the policy back to the reference, `stop` ends the
    run after the step that is being trained."""


class CanaryConfig(BaseModel):
    """`CanaryConfig(every=50, action="stop")`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(50, ge=1)
    """Steps between two readings of the canary pairs."""
    flips: float = Field(0.005, ge=0, lt=1)
    """Alarm when a larger share of the canary verdicts is turned around."""
    is_repeatable: bool = False
    """The judge promises the same verdict to the last bit when asked again, and is held to it."""
    action: Literal["warn", "stop"] = "warn"
    """What to do when the judge is no longer the judge that the run began with."""
