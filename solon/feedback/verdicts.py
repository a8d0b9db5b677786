"""From the log-probs of the answer labels to a margin, a position offset and a status. Pure functions.

Judges favour the answer that stands first. With a = log p(A) - log p(B) when the first answer is shown as A, and
b the same when the two are swapped, an additive bias cancels: margin = (a - b) / 2, offset = (a + b) / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from solon.feedback.config import FeedbackConfig
from solon.records import Status

LogProbs = tuple[float, float]
"""log p of the two labels: (A, B) or (yes, no)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a judge's answer amounts to. `margin` is None unless the status is valid."""

    status: Status
    margin: float | None
    mass: float
    position_offset: float | None = None


def mass(logprobs: LogProbs) -> float:
    """Probability on the two labels together; what is missing went to words that are no verdict.

    NaN when they are no log-probs: one above 0 by more than rounding is a fault of the engine.
    """
    if any(math.isnan(logprob) or logprob > 0.01 for logprob in logprobs):
        return math.nan
    return min(1.0, math.exp(logprobs[0]) + math.exp(logprobs[1]))


def read_bool(yes_no: LogProbs, config: FeedbackConfig) -> Reading:
    """A yes/no question: the log-odds of yes, in nats divided by the calibration temperature."""
    return _judge(yes_no[0] - yes_no[1], mass(yes_no), None, config)


def read_pair(first_shown_first: LogProbs, first_shown_last: LogProbs, config: FeedbackConfig) -> Reading:
    """Which of two answers: log-odds of the first one, position bias cancelled by asking in both orders."""
    forward = first_shown_first[0] - first_shown_first[1]
    backward = first_shown_last[0] - first_shown_last[1]
    masses = mass(first_shown_first), mass(first_shown_last)
    least = math.nan if any(map(math.isnan, masses)) else min(masses)
    return _judge((forward - backward) / 2, least, (forward + backward) / 2, config)


def _judge(raw: float, least_mass: float, offset: float | None, config: FeedbackConfig) -> Reading:
    margin = raw / config.temperature
    if not (math.isfinite(margin) and math.isfinite(least_mass)):
        return Reading(Status.ABSTAIN, None, least_mass if math.isfinite(least_mass) else 0.0)
    if least_mass < config.min_mass:
        return Reading(Status.LOW_MASS, None, least_mass, offset)
    status = Status.TIE if abs(margin) < config.tie_band else Status.OK
    return Reading(status, margin, least_mass, offset)
