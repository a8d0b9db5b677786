"""Figures about judges, and the page that shows them: one file, no network, readable on a phone.

Names of models and judges are untrusted input: all pass through `_shown`, so that none can become markup or break the
layout.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from solon.errors import InputError
from solon.feedback.quality.intervals import Interval
from solon.feedback.quality.metrics import Bin
from solon.files.whole_file import write_whole

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Distinguishable with any colour vision (Okabe and Ito)."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
INK, FAINT, GRID = "#1a1a1a", "#767676", "#e6e6e6"
LONGEST_NAME = 60

Cost = Literal["labels/s", "usd/1k"]
AXES: dict[Cost, str] = {"labels/s": "labels per second", "usd/1k": "US dollars per 1,000 labels"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePoint:
    """A judge on the cost-quality plane.

    JudgePoint(name="tiny, int8", cost=412.0, quality=Interval(value=0.81, low=0.79, high=0.83, pairs=1537))
    """

    name: str
    cost: float
    """Labels per second, or dollars per 1,000 labels: the same for all points of a figure."""
    quality: Interval
    note: str = ""
    """A further line of text about it."""


def pareto_front(points: Sequence[JudgePoint], *, cost: Cost) -> list[int]:
    """Indices of the judges that no other judge beats, by rising cost figure.

    One beats another when it is at least as good in both figures and better in one.
    """
    better = 1 if cost == "labels/s" else -1
    placed = [(better * point.cost, point.quality.value) for point in points]

    def is_beaten(mine: tuple[float, float]) -> bool:
        return any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in placed)

    return sorted((n for n, mine in enumerate(placed) if not is_beaten(mine)), key=lambda n: points[n].cost)


def frontier(points: Sequence[JudgePoint], *, cost: Cost, quality: str = "agreement with gold") -> Figure:
    """Cost and quality of judges, with the Pareto front: the best quality at each price.

    Judges are numbered, best quality first; `write_page` lists the names below, where there is room.
    """
    from plotly.graph_objects import Figure, Scatter

    wrong = [point.name for point in points if not (math.isfinite(point.cost) and math.isfinite(point.quality.value))]
    if not points or wrong:
        raise InputError(f"got {wrong or 'no judges'}, expected at least one, each with finite cost and quality")
    ranked = sorted(points, key=lambda point: -point.quality.value)
    front = pareto_front(ranked, cost=cost)
    costs = [point.cost for point in ranked]
    is_wide = min(costs) > 0 and max(costs) > 20 * min(costs)
    figure = Figure(layout=_layout(AXES[cost], quality))
    figure.add_trace(
        Scatter(
            x=[costs[n] for n in front],
            y=[ranked[n].quality.value for n in front],
            mode="lines",
            # At a price in between, the best choice is the next affordable judge.
            line={"shape": "vh" if cost == "labels/s" else "hv", "dash": "dot", "color": FAINT, "width": 1.5},
            name="Pareto front",
            hoverinfo="skip",
        )
    )
    beaten = [n for n in range(len(ranked)) if n not in front]
    for numbers, name, colour, ink in ((front, "on the front", COLOURS[0], "white"), (beaten, "beaten", FAINT, FAINT)):
        if numbers:
            figure.add_trace(_judges(ranked, numbers, name, colour, ink, cost=cost, quality=quality))
    figure.update_xaxes(type="log" if is_wide else "linear", rangemode="normal" if is_wide else "tozero")
    columns = ["", "judge", AXES[cost], quality]
    table = [[str(n + 1), point.name, _number(point.cost), str(point.quality)] for n, point in enumerate(ranked)]
    figure.update_layout(meta={"columns": columns, "rows": table})
    return figure


def _judges(
    ranked: Sequence[JudgePoint], numbers: Sequence[int], name: str, colour: str, ink: str, *, cost: Cost, quality: str
) -> Any:
    from plotly.graph_objects import Scatter

    points = [ranked[n] for n in numbers]

    def hover(point: JudgePoint) -> str:
        figures = [f"{_shown(quality)} {_in_words(point.quality)}", f"{_number(point.cost)} {AXES[cost]}"]
        return "<br>".join([f"<b>{_shown(point.name)}</b>", *figures, *([_shown(point.note)] if point.note else [])])

    return Scatter(
        x=[point.cost for point in points],
        y=[point.quality.value for point in points],
        error_y=_error_bars([point.quality for point in points], colour),
        mode="markers+text",
        marker={"size": 20, "color": "white" if ink == colour else colour, "line": {"color": colour, "width": 1.5}},
        text=[str(n + 1) for n in numbers],
        textfont={"size": 12, "color": ink},
        cliponaxis=False,
        name=name,
        hovertext=[hover(point) for point in points],
        hoverinfo="text",
    )


def reliability(bins_by_judge: Mapping[str, Sequence[Bin]], *, folded: bool) -> Figure:
    """Claimed against observed frequencies; on the diagonal judges are calibrated, below it they are overconfident.

    folded: bins of pairs, seen from the favoured answer, so that probabilities start at one half.
    """
    from plotly.graph_objects import Figure, Scatter

    if not bins_by_judge or not all(bins_by_judge.values()):
        raise InputError(f"got {len(bins_by_judge)} judges, expected at least one and bins for each")
    least = 0.5 if folded else 0.0
    figure = Figure(layout=_layout("probability the judge gives", "how often it is so"))
    figure.add_trace(
        Scatter(
            x=[least, 1],
            y=[least, 1],
            mode="lines",
            line={"dash": "dot", "color": FAINT, "width": 1.5},
            name="calibrated",
            hoverinfo="skip",
        )
    )
    for index, (name, bins) in enumerate(bins_by_judge.items()):
        colour = COLOURS[index % len(COLOURS)]
        figure.add_trace(
            Scatter(
                x=[one.claimed for one in bins],
                y=[one.true.value for one in bins],
                error_y=_error_bars([one.true for one in bins], colour),
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"size": 8, "color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)]},
                name=_shown(name, longest=28),
                hovertext=[
                    f"<b>{_shown(name)}</b><br>claims {one.claimed:.3f}<br>is so {_in_words(one.true)}"
                    f"<br>{one.mass:.1%} of the pairs"
                    for one in bins
                ],
                hoverinfo="text",
            )
        )
    lowest = min([least, *(one.true.low for bins in bins_by_judge.values() for one in bins)])
    figure.update_xaxes(range=[least - 0.02, 1.02])
    figure.update_yaxes(range=[lowest - 0.02, 1.02])
    return figure


def _layout(x_title: str, y_title: str) -> dict[str, Any]:
    axis = {
        "gridcolor": GRID,
        "linecolor": FAINT,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": FAINT,
        "automargin": True,
        "fixedrange": True,  # scrolling the page by touch must not zoom the figure
    }
    return {
        "template": "none",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "height": 440,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": INK}},
        "xaxis": axis | {"title": {"text": _shown(x_title), "standoff": 8}},
        "yaxis": axis | {"title": {"text": _shown(y_title), "standoff": 8}},
    }


def _error_bars(intervals: Sequence[Interval], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.value for one in intervals],
        "arrayminus": [one.value - one.low for one in intervals],
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def _in_words(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f}, {interval.pairs:,} pairs)"


def _shown(text: str, *, longest: int = LONGEST_NAME) -> str:
    """A text as data: printable, of bounded length, without characters that could start markup."""
    printable = _printable(text)
    cut = printable if len(printable) <= longest else printable[: longest - 1] + "…"
    return html.escape(cut, quote=False)  # Plotly does not decode `&quot;`, and no text is used in an attribute


def _printable(text: str) -> str:
    """The text without control characters, including those that change the order of displayed letters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _number(value: float) -> str:
    """Three significant digits: 1,234 or 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: {ink}; background: white; max-width: 56rem; margin: 0 auto; \
padding: 1rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 0.75rem; }}
h2 {{ font-size: 1.125rem; margin: 2rem 0 0.25rem; }}
p {{ margin: 0 0 0.75rem; max-width: 42rem; }}
.figure {{ width: 100%; min-height: 440px; }}
table {{ border-collapse: collapse; font-size: 0.875rem; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid {grid}; }}
th, td:not(:nth-child(2)) {{ font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
</style>
</head>
<body>
<h1>{title}</h1>
{notes}
{sections}
<script>{plotly}</script>
<script>
for (const [id, figure] of Object.entries({{{figures}}})) {{
  Plotly.newPlot(id, figure.data, figure.layout, {{responsive: true, displayModeBar: false}});
}}
</script>
</body>
</html>
"""


def write_page(figures: Mapping[str, Figure], path: str | Path, *, title: str, notes: Sequence[str] = ()) -> Path:
    """One self-contained HTML file: a heading, paragraphs, and each figure under its own heading.

    The file, 5 MB because of the drawing library, is written atomically.
    """
    from plotly.offline import get_plotlyjs

    sections = [_section(f"figure-{n}", *named) for n, named in enumerate(figures.items())]
    page = PAGE.format(
        title=html.escape(_printable(title)),
        ink=INK,
        grid=GRID,
        notes="\n".join(f"<p>{html.escape(_printable(note))}</p>" for note in notes),
        sections="\n".join(sections),
        plotly=get_plotlyjs(),
        # Plotly escapes `<`, `>` and `/` inside JSON, so that no text ends the script.
        figures=", ".join(f'"figure-{n}": {figure.to_json()}' for n, figure in enumerate(figures.values())),
    )
    return write_whole(path, page, what="page")


def _section(identifier: str, heading: str, figure: Figure) -> str:
    heading = html.escape(_printable(heading))
    drawn = f'<div class="figure" id="{identifier}" role="img" aria-label="{heading}"></div>'
    return f"<section>\n<h2>{heading}</h2>\n{drawn}\n{_table(figure.layout.meta)}</section>"


def _table(meta: Mapping[str, Any] | None) -> str:
    """The figure's numbers as text, if it has any."""
    if not meta:
        return ""

    def row(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(_printable(cell))}</{kind}>" for cell in cells) + "</tr>\n"

    body = "".join(row(cells, "td") for cells in meta["rows"])
    return f"<table>\n<thead>\n{row(meta['columns'], 'th')}</thead>\n<tbody>\n{body}</tbody>\n</table>\n"
