"""Charts of a page: a figure, a sentence that says what it shows, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from solon.report.figures import COLOURS, _shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_POINTS = 1000
"""Of a curve; longer ones are averaged."""
TABLE_ROWS = 25
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
HEIGHT = 320


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure under a heading."""

    name: str
    """Its place in the page's address."""
    title: str
    sentence: str
    figure: Figure
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()

    def as_json(self) -> str:
        """The figure for a script element: no `<` in it."""
        return str(self.figure.to_json()).replace("<", "\\u003c").replace("\u2028", "\\u2028")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Values over steps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    """Lower and upper ends of intervals; empty: none."""
    high: Sequence[float] = ()
    marks: bool = False
    """Draw points, for values at a few steps."""


def curves(
    name: str,
    title: str,
    drawn: Sequence[Curve],
    *,
    y: str,
    sentence: str | None = None,
    x: str = "step",
    zero: bool = False,
    share: bool = False,
) -> Chart | None:
    """Curves over steps; None when there is no value. Colour and dash differ, so that no colour is needed to tell them
    apart."""
    import plotly.graph_objects as go

    known = [thinned(curve) for curve in drawn if len(curve.steps)]
    if not known:
        return None
    figure = go.Figure(layout=layout(x, y))
    for number, curve in enumerate(known):
        colour = COLOURS[number % len(COLOURS)]
        if curve.low:
            figure.add_trace(_band(curve, colour))
        figure.add_trace(
            go.Scatter(
                x=_round(curve.steps),
                y=_round(curve.values),
                mode="lines+markers" if curve.marks or len(curve.steps) < 3 else "lines",
                line={"color": colour, "width": 2, "dash": DASHES[number % len(DASHES)]},
                name=_shown(curve.name, longest=40),
            )
        )
    if zero or share:
        figure.update_yaxes(rangemode="tozero")
    if share:
        figure.update_yaxes(tickformat=".0%")
    columns, rows = table(known, x=x, share=share)
    told = sentence if sentence is not None else " ".join(_told(curve, share=share) for curve in known)
    return Chart(name=name, title=title, sentence=told, figure=figure, columns=columns, rows=rows)


def bars(
    name: str, title: str, labels: Sequence[str], values: Mapping[str, Sequence[float]], *, x: str, sentence: str
) -> Chart | None:
    """Horizontal bars: one group for each label, one bar for each name."""
    import plotly.graph_objects as go

    if not labels:
        return None
    figure = go.Figure(layout=layout(x, ""))
    for number, (series, numbers) in enumerate(values.items()):
        figure.add_trace(
            go.Bar(
                y=[_shown(label) for label in labels],
                x=_round(numbers),
                orientation="h",
                name=_shown(series),
                marker={"color": COLOURS[number % len(COLOURS)], "pattern": {"shape": ("", "/", "x")[number % 3]}},
            )
        )
    figure.update_layout(height=max(160, 90 + 26 * len(labels) * len(values)))
    figure.update_yaxes(autorange="reversed")
    rows = [[label, *(format_number(numbers[n]) for numbers in values.values())] for n, label in enumerate(labels)]
    return Chart(name=name, title=title, sentence=sentence, figure=figure, columns=["", *values], rows=rows)


def layout(x: str, y: str) -> dict[str, Any]:
    """A layout without colours of its own: the page sets them for light and dark."""
    axis = {"zeroline": False, "automargin": True, "fixedrange": True, "title": {"standoff": 8}}
    return {
        "template": "none",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": HEIGHT,
        "margin": {"l": 48, "r": 12, "t": 12, "b": 40},
        "legend": {"orientation": "h", "yanchor": "top", "y": -60 / HEIGHT, "x": 0, "entrywidthmode": "pixels"},
        "hovermode": "closest",
        "barmode": "group",
        "xaxis": axis | {"title": {"text": _shown(x), "standoff": 8}},
        "yaxis": axis | {"title": {"text": _shown(y), "standoff": 8}},
    }


def table(known: Sequence[Curve], *, x: str, share: bool) -> tuple[list[str], list[list[str]]]:
    """At most TABLE_ROWS steps of all curves, evenly spread."""
    steps = sorted({step for curve in known for step in curve.steps})
    if len(steps) > TABLE_ROWS:
        places = {round(n * (len(steps) - 1) / (TABLE_ROWS - 1)) for n in range(TABLE_ROWS)}
        steps = [steps[place] for place in sorted(places)]
    values = [dict(zip(curve.steps, curve.values, strict=True)) for curve in known]
    rows = [[f"{step:g}", *(format_number(found.get(step), share=share) for found in values)] for step in steps]
    return [x, *(curve.name for curve in known)], rows


def thinned(curve: Curve) -> Curve:
    """The curve with at most MOST_POINTS points: means of neighbours."""
    size = math.ceil(len(curve.steps) / MOST_POINTS)
    if size <= 1:
        return curve

    def means(values: Sequence[float]) -> list[float]:
        return [sum(part) / len(part) for n in range(0, len(values), size) if (part := values[n : n + size])]

    return Curve(
        name=curve.name,
        steps=[curve.steps[n] for n in range(0, len(curve.steps), size)],
        values=means(curve.values),
        low=means(curve.low),
        high=means(curve.high),
        marks=curve.marks,
    )


def format_number(value: float | None, *, share: bool = False) -> str:
    """A number for people; `–` where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.1%}" if share else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _told(curve: Curve, *, share: bool) -> str:
    first, last = (format_number(value, share=share) for value in (curve.values[0], curve.values[-1]))
    if len(curve.values) == 1:
        return f"{curve.name}: {first}."
    return f"{curve.name}: {first} at first, {last} at last{_extreme(curve, share=share)}."


def _extreme(curve: Curve, *, share: bool) -> str:
    """The highest or lowest value where it lies far outside of the two ends."""
    ends = sorted((curve.values[0], curve.values[-1]))
    room = max(ends[1] - ends[0], 0.25 * max(abs(ends[0]), abs(ends[1])), 1e-9)
    told = []
    for name, value in (("highest", max(curve.values)), ("lowest", min(curve.values))):
        if max(value - ends[1], ends[0] - value) > room:
            told.append(f"{name} {format_number(value, share=share)} at {curve.steps[curve.values.index(value)]:g}")
    return f", {', '.join(told)}" if told else ""


def _band(curve: Curve, colour: str) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=_round([*curve.steps, *reversed(curve.steps)]),
        y=_round([*curve.high, *reversed(curve.low)]),
        fill="toself",
        fillcolor=f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.18)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        name=f"{curve.name}, 95 %",
    )


def _round(values: Sequence[float]) -> list[float | None]:
    """Five significant digits: a page of many curves stays small."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
