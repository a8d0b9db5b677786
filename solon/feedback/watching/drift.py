"""Does the judge still reward what gold would reward? Windows of audited rollouts, and decisions from them.

    audited rollouts ──▶ windows ──▶ trends, peak ──▶ decide ──▶ nothing | warn | act

The audit is uniform, so plain means are unbiased and need no weights. Optimising an imperfect judge first gains and
then loses by gold; with d the square root of the KL to the reference, gold follows d (alpha - beta ln d) under
reinforcement learning (Gao, Schulman, Hilton 2023, arXiv:2210.10760), which peaks at d = exp(alpha / beta - 1).
"""

# W windows, N audited rollouts

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from solon.feedback.quality.intervals import Floats, Interval
from solon.feedback.watching.audit import Audited

ONE_SIDED_95 = 1.645
TWO_SIDED_95 = 1.96
MIN_FIT_WINDOWS = 5
FALSE_FALL = 0.01
"""Probability that noise alone looks like a fall from the best level, per window."""
LEVEL_WINDOWS = 3
"""Windows averaged for the present level of gold or of the distance."""
FARTHEST = 50.0
"""Upper bound of an exponent: no run reaches a distance of exp(50)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Means over the audited rollouts of a part of the run. Rewards in nats on each judge's own scale."""

    first_step: int
    last_step: int
    step: float
    """Mean policy version of its rollouts."""
    num: int
    proxy: float
    gold: float
    proxy_std: float
    gold_std: float
    """Standard deviations of single rollouts."""
    correlation: float
    """Correlation of proxy and gold over its rollouts; NaN when one of them does not vary."""
    agreement: float
    """Share of pairs of its rollouts that both judges order in the same way."""
    distance: float = math.nan
    """Square root of the KL to the reference, nats per answer; NaN when the run has no reference."""


def window_of(audited: Sequence[Audited], *, distance: float = math.nan) -> Window:
    """The window of at least two audited rollouts."""
    if len(audited) < 2:
        raise ValueError(f"got {len(audited)} audited rollouts, expected at least 2; audit more")
    proxy_N = np.array([one.proxy for one in audited])
    gold_N = np.array([one.gold for one in audited])
    steps = [one.step for one in audited]
    stds = float(proxy_N.std(ddof=1)), float(gold_N.std(ddof=1))
    product = stds[0] * stds[1] * (len(audited) - 1)
    centred = float((proxy_N - proxy_N.mean()) @ (gold_N - gold_N.mean()))
    return Window(
        first_step=min(steps),
        last_step=max(steps),
        step=sum(steps) / len(steps),
        num=len(audited),
        proxy=float(proxy_N.mean()),
        gold=float(gold_N.mean()),
        proxy_std=stds[0],
        gold_std=stds[1],
        correlation=centred / product if product > 1e-12 else math.nan,
        agreement=agreement(proxy_N, gold_N),
        distance=distance,
    )


def agreement(proxy_N: Sequence[float] | Floats, gold_N: Sequence[float] | Floats) -> float:
    """Share of pairs of rollouts that both order in the same way; 0.5 is chance. NaN when no pair is decided by both.

    Orders, not values: the two judges have different scales. It falls naturally as a policy's answers become similar,
    so it raises no alarm.
    """
    proxy, gold = np.asarray(proxy_N, np.float64), np.asarray(gold_N, np.float64)
    upper = np.triu_indices(len(proxy), 1)
    same = np.sign(proxy[:, None] - proxy)[upper] * np.sign(gold[:, None] - gold)[upper]
    decided = int((same != 0).sum())
    return float((same > 0).sum() / decided) if decided else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A change with one-sided bounds in both directions; for a change per step, 95 % bounds."""

    value: float
    low: float
    high: float


def trend(windows: Sequence[Window], of: Literal["proxy", "gold"]) -> Trend:
    """Weighted least squares of window means over steps; the noise of a mean is known from its rollouts."""
    if len(windows) < 2 or windows[0].step == windows[-1].step:
        raise ValueError(f"got {len(windows)} windows, expected at least 2 of different steps")
    steps_W = np.array([w.step for w in windows])
    means_W = np.array([getattr(w, of) for w in windows])
    weights_W = 1 / _variances(windows, of)
    centred_W = steps_W - weights_W @ steps_W / weights_W.sum()
    spread = float(weights_W @ centred_W**2)
    value = float(weights_W @ (centred_W * means_W)) / spread
    half = ONE_SIDED_95 / math.sqrt(spread)
    return Trend(value=value, low=value - half, high=value + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakFit:
    """Gold as origin + d (alpha - beta ln d)."""

    origin: float
    alpha: float
    beta: float
    peak: Interval
    """Distance at which gold is highest; its upper end is infinite when the curve does not bend significantly."""
    past: Trend
    """Slope of the fitted curve at the run's present distance, per unit of distance."""

    def gold(self, distance: float) -> float:
        """Gold predicted by the curve at a distance."""
        return self.origin + distance * (self.alpha - self.beta * math.log(distance)) if distance > 0 else self.origin


def fit_peak(windows: Sequence[Window]) -> PeakFit | None:
    """Weighted least squares; None with fewer than five windows of known and different distance.

    The peak is a ratio of two estimates, so its interval is Fieller's, which is valid even if the bend is not
    significant, unlike the delta method. Scatter beyond the noise of the means widens it.
    """
    known = [w for w in windows if math.isfinite(w.distance) and w.distance > 0]
    if len(known) < MIN_FIT_WINDOWS:
        return None
    distances_W = np.array([w.distance for w in known])
    if distances_W.max() < 1.2 * distances_W.min():
        return None
    golds_W = np.array([w.gold for w in known])
    weights_W = 1 / _variances(known, "gold")
    design = np.stack([np.ones_like(distances_W), distances_W, -distances_W * np.log(distances_W)], axis=1)
    normal = design.T @ (weights_W[:, None] * design)
    if np.linalg.cond(normal) > 1e12:
        return None
    covariance = np.linalg.inv(normal)
    estimate = covariance @ design.T @ (weights_W * golds_W)
    residual = golds_W - design @ estimate
    covariance *= max(1.0, float(weights_W @ residual**2) / (len(known) - 3))
    origin, alpha, beta = (float(value) for value in estimate)
    low, high = _fieller(alpha, beta, covariance[1:, 1:])
    here = _here(known)
    direction = np.array([0.0, 1.0, -math.log(here) - 1])
    slope, half = float(direction @ estimate), ONE_SIDED_95 * math.sqrt(float(direction @ covariance @ direction))
    value = _distance(alpha / beta) if beta > 0 else math.inf
    return PeakFit(
        origin=origin,
        alpha=alpha,
        beta=beta,
        peak=Interval(value=value, low=low, high=high, pairs=sum(w.num for w in known)),
        past=Trend(value=slope, low=slope - half, high=slope + half),
    )


def _fieller(alpha: float, beta: float, covariance: Floats) -> tuple[float, float]:
    """95 % interval of exp(alpha / beta - 1); unbounded unless beta is significantly above zero."""
    z2 = TWO_SIDED_95**2
    square = beta * beta - z2 * float(covariance[1, 1])
    if beta <= 0 or square <= 0:
        return 0.0, math.inf
    cross = alpha * beta - z2 * float(covariance[0, 1])
    rest = alpha * alpha - z2 * float(covariance[0, 0])
    root = math.sqrt(max(0.0, cross * cross - square * rest))
    return _distance((cross - root) / square), _distance((cross + root) / square)


def _distance(ratio: float) -> float:
    return math.exp(ratio - 1) if ratio < FARTHEST else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A reason for a warning or an action."""

    verdict: Literal["warn", "act"]
    kind: Literal["near_peak", "past_peak", "gold_falls"]
    value: float
    threshold: float
    message: str


def decide(
    windows: Sequence[Window], *, trend_windows: int = 5, near: float = 0.8, is_relative: bool = False
) -> list[Reason]:
    """What the last windows require; empty: nothing.

    act: the proxy rises while gold falls over the last `trend_windows`, both by their 95 % bounds; or the run is past
    the predicted peak by its interval and by the slope of the curve, and gold is below its best level (`fallen`), at
    this window and at the previous one. warn: it has covered more than `near` of the distance to the peak. is_relative:
    the reward compares answers of one group (pairwise), so that its level cannot rise; instead, gold must fall and be
    below its best level at this window and at the previous one.
    """
    reasons = []
    falls = _gold_falls(windows, trend_windows, is_relative=is_relative)
    if falls is not None and (not is_relative or _gold_falls(windows[:-1], trend_windows, is_relative=True)):
        reasons.append(falls)
    fit, here = fit_peak(windows), _here(windows)
    if fit is None or not math.isfinite(fit.peak.high):
        return reasons
    told = f"sqrt KL {here:.2f}, gold is predicted to peak at {fit.peak}"
    if _is_past_peak(windows) and _is_past_peak(windows[:-1]):
        message = f"{told}, and has fallen by {fallen(windows).value:.3f} nats since its best windows"
        reasons.append(Reason(verdict="act", kind="past_peak", value=here, threshold=fit.peak.high, message=message))
    elif here >= near * fit.peak.value:
        reasons.append(
            Reason(verdict="warn", kind="near_peak", value=here, threshold=near * fit.peak.value, message=told)
        )
    return reasons


def _gold_falls(windows: Sequence[Window], trend_windows: int, *, is_relative: bool) -> Reason | None:
    """A bound that is checked in every window is sooner or later passed by noise: stationary gold falls by its 95 %
    bound in every twentieth window. If the reward need not rise at the same time, gold must be below its best level."""
    recent = windows[-trend_windows:]
    if len(recent) < trend_windows or recent[0].step == recent[-1].step:
        return None
    proxy, gold = trend(recent, "proxy"), trend(recent, "gold")
    if gold.high >= 0 or not (fallen(windows).low > 0 if is_relative else proxy.low > 0):
        return None
    return Reason(
        verdict="act",
        kind="gold_falls",
        value=gold.high,
        threshold=0.0,
        message=f"gold falls by {-gold.value:.4f} nats a step over steps {recent[0].first_step} to "
        f"{recent[-1].last_step} (95 % bound {-gold.high:.4f}) while the reward changes by {proxy.value:+.4f}",
    )


def _is_past_peak(windows: Sequence[Window]) -> bool:
    fit = fit_peak(windows)
    return fit is not None and fit.peak.high < _here(windows) and fit.past.high < 0 and fallen(windows).low > 0


def fallen(windows: Sequence[Window], *, over: int = LEVEL_WINDOWS) -> Trend:
    """How far gold's level over the last windows is below the best earlier one, with one-sided 99 % bounds.

    The best of many levels is partly luck, so the bounds are corrected for multiple comparisons (Bonferroni). A curve
    fitted to gold at its ceiling bends as if it were to fall, and predicts a peak that never comes: a prediction is
    acted on only if the fall is also observed.
    """
    golds_W = np.array([window.gold for window in windows])
    if len(golds_W) < 2 * over:
        return Trend(value=0.0, low=-math.inf, high=math.inf)
    levels = np.convolve(golds_W, np.full(over, 1 / over), "valid")
    value = float(levels[:-over].max() - levels[-1])
    variances_W = _variances(windows, "gold")
    quantile = NormalDist().inv_cdf(1 - FALSE_FALL / len(levels[:-over]))
    half = quantile * math.sqrt(2 * float(variances_W.mean()) / over)
    return Trend(value=value, low=value - half, high=value + half)


def _here(windows: Sequence[Window]) -> float:
    """Present distance of the run: the KL of one batch is noisy, so the median of the last windows."""
    known = [window.distance for window in windows if math.isfinite(window.distance)]
    return float(np.median(known[-LEVEL_WINDOWS:])) if known else math.nan


def _variances(windows: Sequence[Window], of: Literal["proxy", "gold"]) -> Floats:
    """Variances of the window means. A window whose few rollouts agree is not infinitely certain: spreads are
    pooled."""
    pooled = max(pooled_std(windows, "proxy_std" if of == "proxy" else "gold_std"), 1e-6)
    return np.array([pooled**2 / w.num for w in windows])


def pooled_std(windows: Sequence[Window], name: Literal["proxy_std", "gold_std"]) -> float:
    """Standard deviation of single rollouts inside the windows."""
    degrees = sum(w.num - 1 for w in windows)
    return max(math.sqrt(sum((w.num - 1) * getattr(w, name) ** 2 for w in windows) / degrees), 1e-6)
