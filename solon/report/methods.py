"""Figures of a comparison of methods: quality against cost and against drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from solon.evaluation.methods import MethodRow
from solon.report.figures import COLOURS, SYMBOLS, _error_bars, _layout, _shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def against(rows: Sequence[MethodRow], values: Sequence[float], title: str) -> Figure:
    """Change of the mean score against a figure of each method."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout(title, "change of the mean score"))
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=[value],
                y=[row.change.value],
                error_y=_error_bars([row.change], colour),
                mode="markers",
                name=_shown(row.name),
                marker={"size": 11, "color": colour, "symbol": SYMBOLS[number % len(SYMBOLS)]},
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[value] * len(row.by_seed),
                y=list(row.by_seed),
                mode="markers",
                showlegend=False,
                hoverinfo="y",
                marker={"size": 5, "color": colour, "opacity": 0.5},
            )
        )
    return figure


def figures(rows: Sequence[MethodRow]) -> dict[str, Figure]:
    """By heading."""
    found = {"Quality against cost": against(rows, [row.cost.seconds for row in rows], "seconds of the machine")}
    if all(row.kl is not None for row in rows):
        drifts = [row.kl or 0.0 for row in rows]
        found["Quality against drift"] = against(rows, drifts, "KL divergence from the start, nats an answer")
    return found
