"""From the log-probs of the answer labels to a margin, a position offset and a status. Pure functions.

Judges favour the answer shown first. With a = log p(A) - log p(B) when the first answer is shown as A, and b the same
when the two are swapped, an additive bias cancels: margin = (a - b) / 2, offset = (a + b) / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from solon.feedback.config import FeedbackConfig
from solon.verdicts import Status

LogProbs = Sequence[float]
"""log p of the labels: (A, B), (yes, no), or the marks of a scale from the lowest to the highest."""
Calibrate = Callable[[float], float]
"""From a raw margin to a calibrated one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A parsed answer of a judge. `margin` is None unless the status is valid."""

    status: Status
    margin: float | None
    mass: float
    position_offset: float | None = None
    raw: float | None = None
    """The margin before calibration."""
    consistent: bool | None = None
    """Whether both orders favour the same answer; None when one order was asked, or at a tie."""


def mass(logprobs: LogProbs) -> float:
    """Total probability of the labels; the rest went to other words.

    NaN when these are no log-probs: one above 0 by more than rounding is a fault of the engine.
    """
    if not logprobs or any(math.isnan(logprob) or logprob > 0.01 for logprob in logprobs):
        return math.nan
    return min(1.0, sum(math.exp(logprob) for logprob in logprobs))


def read_bool(yes_no: LogProbs, config: FeedbackConfig, calibrate: Calibrate | None = None) -> Reading:
    """A yes/no question: the log-odds of yes, in nats, calibrated."""
    return _judge(yes_no[0] - yes_no[1], mass(yes_no), config, calibrate)


def read_pair(
    first_shown_first: LogProbs,
    first_shown_last: LogProbs,
    config: FeedbackConfig,
    calibrate: Calibrate | None = None,
) -> Reading:
    """Which of two answers: log-odds of the first one, position bias cancelled by asking in both orders."""
    forward = first_shown_first[0] - first_shown_first[1]
    backward = first_shown_last[0] - first_shown_last[1]
    masses = mass(first_shown_first), mass(first_shown_last)
    least = math.nan if any(map(math.isnan, masses)) else min(masses)
    agree = forward * backward < 0 if forward and backward else None
    offset = (forward + backward) / 2
    return _judge((forward - backward) / 2, least, config, calibrate, offset=offset, consistent=agree)


def read_one_order(
    shown: LogProbs, offset: float, config: FeedbackConfig, calibrate: Calibrate | None = None
) -> Reading:
    """Which of two answers, asked in one order: log-odds of the one shown first, minus the judge's usual offset."""
    return _judge(shown[0] - shown[1] - offset, mass(shown), config, calibrate)


def read_score(marks: LogProbs, config: FeedbackConfig, calibrate: Calibrate | None = None) -> Reading:
    """A mark from 1 to K: its expectation over the judge's distribution, minus the middle of the scale.

    The most likely mark would discard how sure the judge is (arXiv:2309.00267).
    """
    total = mass(marks)
    if not math.isfinite(total) or total == 0:
        return _judge(math.nan, total, config, calibrate)
    top = max(marks)
    weights = [math.exp(mark - top) for mark in marks]
    expected = sum(n * w for n, w in enumerate(weights, start=1)) / sum(weights)
    return _judge(expected - (len(marks) + 1) / 2, total, config, calibrate)


def turned(reading: Reading) -> Reading:
    """The same verdict for the reversed order of answers, or for the opposite question."""
    return Reading(
        reading.status,
        None if reading.margin is None else -reading.margin,
        reading.mass,
        reading.position_offset,
        None if reading.raw is None else -reading.raw,
        reading.consistent,
    )


def _judge(
    raw: float,
    least_mass: float,
    config: FeedbackConfig,
    calibrate: Calibrate | None,
    *,
    offset: float | None = None,
    consistent: bool | None = None,
) -> Reading:
    margin = calibrate(raw) if calibrate is not None and math.isfinite(raw) else raw / config.temperature
    if not (math.isfinite(margin) and math.isfinite(least_mass)):
        return Reading(Status.ABSTAIN, None, least_mass if math.isfinite(least_mass) else 0.0)
    if least_mass < config.min_mass:
        return Reading(Status.LOW_MASS, None, least_mass, offset)
    status = Status.TIE if abs(margin) < config.tie_band else Status.OK
    return Reading(status, margin, least_mass, offset, raw, consistent)
