"""What a judge says about one item, and how a question to it can end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Task = Literal["pairwise", "pointwise", "predicate", "score"]
"""Which of two answers is better; is this answer good; is this fact true of it; how good is it on a scale."""

Source = Literal["judge", "exact_cache", "semantic_cache", "proxy"]
"""Who answered."""


class Status(StrEnum):
    """The outcome of a question to a judge; only `ok` and `tie` may carry a number."""

    OK = "ok"
    TIE = "tie"
    ABSTAIN = "abstain"
    LOW_MASS = "low_mass"
    UNPARSABLE = "unparsable"
    REFUSAL = "refusal"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    TRANSPORT_ERROR = "transport_error"
    ENGINE_ERROR = "engine_error"
    BUDGET_SKIP = "budget_skip"

    @property
    def valid(self) -> bool:
        """Whether a verdict of this status has a margin."""
        return self in (Status.OK, Status.TIE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge said about one item. `margin` is None unless the status is valid.

    Verdict(status=Status.OK, margin=1.2, raw_margin=1.5, mass=0.99, judge="judge-0")

    Raises ValueError for a margin without a valid status, and for a valid status without a margin.
    """

    status: Status
    margin: float | None
    """Calibrated log-odds of yes over no, or of the first answer over the second, position bias removed; for a score,
    its distance from the middle of the scale."""
    raw_margin: float | None = None
    """The margin before calibration."""
    position_offset: float | None = None
    """Pairwise: how much the judge favours the answer shown first, in nats; None when one order was asked."""
    consistent: bool | None = None
    """Pairwise: whether both orders favour the same answer; None when one order was asked."""
    mass: float = 0.0
    """Probability on the answer labels; the smaller one of both orders."""
    judge: str = ""
    """Name of the judge."""
    level: int = 0
    """0: the first judge of a cascade; 1: the one it escalates to; and so on."""
    source: Source = "judge"
    """The judge, one of the caches, or a proxy."""
    questions: int = 0
    """Questions that the verdict took."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine's prefix cache served."""
    output_tokens: int = 0
    cache_hits: int = 0
    """Questions that the exact cache answered."""
    usd: float = 0.0
    propensity: float = 1.0
    """Probability with which this judge was to be asked; below 1, the margin is a doubly-robust reward."""
    prompt_digests: tuple[str, ...] = ()
    """sha256 of each question, in order."""
    detail: str = ""
    """What went wrong, or what was cut, for people."""

    def __post_init__(self) -> None:
        if self.status.valid != (self.margin is not None):
            raise ValueError(f"a {self.status} verdict with margin {self.margin}: only a valid one has a number")
