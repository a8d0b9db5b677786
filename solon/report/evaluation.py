"""Figures of an evaluation: the scores of every policy by principle, and by tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from solon.feedback.quality.intervals import Interval
from solon.report.figures import COLOURS, SYMBOLS, _error_bars, _layout, _shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def scores(rows: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """A marker with its 95 % interval for every policy and score. rows: scores by policy and name."""
    import plotly.graph_objects as go

    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    figure = go.Figure(layout=_layout("", "share of answers"))
    for number, (policy, found) in enumerate(rows.items()):
        colour = COLOURS[number % len(COLOURS)]
        known = [name for name in names if name in found]
        # Policies stand side by side, so that their intervals can be told apart.
        shift = min(0.16, 0.8 / len(rows)) * (number - (len(rows) - 1) / 2)
        figure.add_trace(
            go.Scatter(
                x=[names.index(name) + shift for name in known],
                y=[found[name].value for name in known],
                error_y=_error_bars([found[name] for name in known], colour),
                mode="markers",
                name=_shown(policy),
                marker={"size": 9, "color": colour, "symbol": SYMBOLS[number % len(SYMBOLS)]},
            )
        )
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=[_shown(name) for name in names], title="")
    figure.update_yaxes(range=[-0.02, 1.02])
    return figure


def figures(policies: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """By heading, from the policies of `evaluation.json`."""
    found = {"Principles": scores({one["model"]: _intervals(one["scores"]) for one in policies})}
    if any(one.get("by") for one in policies):
        by_tag = {one["model"]: {tag: row["mean"] for tag, row in one["by"].items()} for one in policies}
        found["Prompts by tag"] = scores({model: _intervals(rows) for model, rows in by_tag.items()})
    return found


def _intervals(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Interval]:
    return {name: Interval(**values) for name, values in figures.items() if values["pairs"]}
