"""Settings of the watch over a run's labels."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["warn", "raise_kl", "stop"]
"""The action for an alarm."""


class WatchConfig(BaseModel):
    """`WatchConfig(audit_share=0.02, action="stop")`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audit_share: float = Field(0.02, gt=0, le=1)
    """Share of all rollouts that gold reads, drawn uniformly."""
    audit_window: int = Field(64, ge=16)
    """Fewest audited rollouts of one window; with fewer, slopes are noise."""
    reference_windows: int = Field(3, ge=1)
    """Number of first windows of the run that later ones are compared with."""
    trend_windows: int = Field(5, ge=2)
    """Windows over which the slopes of reward and gold are fitted."""
    near_peak: float = Field(0.8, gt=0, le=1)
    """Warn from this share of the distance to the predicted peak."""
    gap_tolerance: float = Field(0.75, ge=0)
    """Accepted gap between reward and gold, in standard deviations: optimising any judge fits its noise a little."""
    gap_slack: float = Field(0.5, ge=0)
    """Slack of the gap's CUSUM per window, in standard errors."""
    gap_limit: float = Field(5.0, gt=0)
    """The gap's CUSUM raises an alarm above this."""
    missing_gold: float = Field(0.05, gt=0, le=1)
    """Warn when a larger share of the audited rollouts has no verdict from gold or the judge."""
    symptom_answers: int = Field(256, ge=16)
    """Fewest answers of one window of symptoms."""
    symptom_every: int = Field(5, ge=1)
    """Fewest steps between two windows of symptoms."""
    psi: float = Field(0.2, gt=0)
    """Warn when the margins' stability index against the first windows exceeds this."""
    collapse_alike: float = Field(0.9, gt=0, le=1)
    """The policy has collapsed when a larger share of its answers begins alike, or answers to one prompt share more of
    their word pairs, in two consecutive windows, and the first windows were well below. 1: never."""
    collapse_part: float = Field(0.2, ge=0, lt=1)
    """It has also collapsed when the length or the variety of its answers falls below this part of its value in the
    first windows; and a principle is lost when, by gold, the share of answers that obey it does. 0: never."""
    action: Action = "warn"
    """Action when gold falls while the reward rises, when the run is past the predicted peak, when the policy has
    collapsed or a principle is lost: `warn` reports it, `raise_kl` pulls the policy back to the reference, `stop` ends
    the run after the current step."""


class CanaryConfig(BaseModel):
    """`CanaryConfig(every=50, action="stop")`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(50, ge=1)
    """Steps between two readings of the canary pairs."""
    flips: float = Field(0.005, ge=0, lt=1)
    """Raise an alarm when a larger share of the canary verdicts has flipped."""
    is_repeatable: bool = False
    """The judge must give exactly the same verdict when asked again; any difference is an alarm."""
    action: Literal["warn", "stop"] = "warn"
    """Action when the judge is no longer the one that the run started with."""
