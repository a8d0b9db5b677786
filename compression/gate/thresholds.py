"""How much a compressed model may lose, at the upper bound of each figure."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Strictness = Literal["strict", "lenient"]
Role = Literal["policy", "critic", "judge", "reward_model"]


class Thresholds(BaseModel):
    """`Thresholds(net_flips=0.02)`; shares of pairs unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    net_flips: float = Field(0.02, gt=0, le=1)
    """Preferences lost less those gained."""
    flips: float = Field(0.08, gt=0, le=1)
    """Preferences changed in either direction."""
    worst_tag: float = Field(0.04, gt=0, le=1)
    """Preferences lost less those gained among the pairs of any one tag, such as a principle."""
    margin: float = Field(0.10, gt=0, le=1)
    """Mean margin lost, as a share of the mean absolute margin."""
    brier: float = Field(0.01, gt=0, le=1)
    """Increase of the squared error of the probability that the chosen answer is the better one."""
    degenerate: float = Field(0.02, gt=0, le=1)
    """Increase of the share of answers that are empty or repeat themselves."""
    order: float = Field(0.05, gt=0, le=1)
    """Of a reward model: pairs of answers to one prompt that it ranks the other way round, over all pairs of them."""


def thresholds(strictness: Strictness, role: Role = "policy") -> Thresholds:
    """`strict`: the defaults; what judges may change fewer verdicts. `lenient`: twice as much, for experiments."""
    strict = Thresholds() if role == "policy" else Thresholds(flips=0.05)
    if strictness == "strict":
        return strict
    return Thresholds(**{name: min(1.0, 2 * value) for name, value in strict.model_dump().items()})
