"""The numbers behind an alarm, and the figures of an audit window, as text and as metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from solon.feedback.watching.drift import Window, fit_peak, trend
from solon.feedback.watching.gap import Gap

SHOWN = 5
"""Most windows that are written out."""


def of_windows(windows: Sequence[Window]) -> str:
    """Gold and reward of the last windows, oldest first.

    `gold 1.20, 0.91, 0.44 and reward 2.0, 2.3, 2.9 nats in windows of about 64 answers, steps 20 to 41`
    """
    recent = windows[-SHOWN:]
    if not recent:
        return ""
    golds, rewards = (
        ", ".join(f"{value:.2f}" for value in row) for row in ([w.gold for w in recent], [w.proxy for w in recent])
    )
    num = round(sum(w.num for w in recent) / len(recent))
    return (
        f"gold {golds} and reward {rewards} nats in windows of about {num} answers, steps "
        f"{min(w.first_step for w in recent)} to {max(w.last_step for w in recent)}"
    )


def metrics_of(windows: Sequence[Window], gap: Gap | None, *, trend_windows: int) -> dict[str, float]:
    """`watch/...` of the last window; unknown figures are omitted."""
    window = windows[-1]
    found = {
        "watch/proxy/mean": window.proxy,
        "watch/gold/mean": window.gold,
        "watch/agreement/mean": window.agreement,
        "watch/correlation/mean": window.correlation,
        "watch/distance/mean": window.distance,
        "watch/audited/sum": float(window.num),
    }
    if gap is not None:
        found |= {"watch/gap/mean": gap.value, "watch/gap_cusum/last": gap.cusum.value}
    recent = windows[-trend_windows:]
    if len(recent) == trend_windows and recent[0].step < recent[-1].step:
        proxy, gold = trend(recent, "proxy"), trend(recent, "gold")
        found |= {"watch/proxy_slope/mean": proxy.value, "watch/gold_slope/mean": gold.value}
        found["watch/gold_slope/high"] = gold.high
    if (fit := fit_peak(windows)) is not None:
        found |= {"watch/peak/mean": fit.peak.value, "watch/peak/high": fit.peak.high}
    return {key: value for key, value in found.items() if math.isfinite(value)}
