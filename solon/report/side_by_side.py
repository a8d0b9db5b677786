"""Several runs on one page: their curves and held-out scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from solon.report.charts import Chart, curves
from solon.report.run_answers import heldout_pairs
from solon.report.run_charts import series
from solon.report.run_facts import MEAN, change_by_principle
from solon.report.store import RunStore

CURVES = (
    ("reward", "Reward", "learn/reward/mean", "nats"),
    ("gold", "Audited answers, by the auditor", "watch/gold/mean", "nats"),
    ("kl", "Distance to the reference", "learn/kl_reference/mean", "nats per token"),
    ("length", "Length of the answers", "learn/response_length/mean", "tokens"),
    ("entropy", "Entropy of the policy", "learn/entropy/mean", "nats per token"),
)


def side_by_side(stores: Mapping[str, RunStore]) -> dict[str, Any]:
    """Charts with a curve for each run, and a table of held-out scores after training."""
    charts: list[Chart | None] = []
    for name, title, metric, unit in CURVES:
        drawn = [replace(series(store, metric), name=run) for run, store in stores.items()]
        charts.append(curves(name, title, drawn, y=unit))
    scores = {
        run: {row["name"]: row for row in change_by_principle(heldout_pairs(store))} for run, store in stores.items()
    }
    names = sorted({name for found in scores.values() for name in found} - {MEAN})
    rows = [
        [name, *(_score(found.get(name)) for found in scores.values())]
        for name in (*names, *([MEAN] if any(MEAN in found for found in scores.values()) else []))
    ]
    return {"charts": charts, "columns": ["after training, and change", *scores], "rows": rows}


def _score(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    change = row["change"]
    return f"{row['after'].value:.3f} ({change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}])"
