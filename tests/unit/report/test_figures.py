"""Figures about judges and the page that shows them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from solon.errors import InputError
from solon.feedback.quality.intervals import Interval, wilson
from solon.feedback.quality.metrics import Bin
from solon.report.figures import JudgePoint, frontier, pareto_front, reliability, write_page

ATTACKS = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">best</a>',
    "<!--<script>",
    '"><b>',
]


def make_point(name: str = "judge", cost: float = 10.0, quality: float = 0.8) -> JudgePoint:
    return JudgePoint(name=name, cost=cost, quality=wilson(quality, 1000))


def make_bins(*pairs: tuple[float, float]) -> list[Bin]:
    return [Bin(claimed=claimed, true=wilson(true, 100), mass=1 / len(pairs)) for claimed, true in pairs]


class Page(HTMLParser):
    """A browser's view of a page: elements, text outside scripts, text of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text += data


@pytest.fixture(autouse=True)
def small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* the drawing library */")


def figures_in(page: Page) -> dict[str, Any]:
    """The figures as the page's script hands them to Plotly."""
    found: dict[str, Any] = json.loads(re.search(r"Object\.entries\((\{.*\})\)\) \{", page.scripts[-1]).group(1))  # type: ignore[union-attr]
    return found


def test_the_front_has_the_judges_that_no_other_beats():
    points = [
        make_point(cost=100, quality=0.7),
        make_point(cost=50, quality=0.8),
        make_point(cost=40, quality=0.75),
        make_point(cost=10, quality=0.9),
        make_point(cost=10, quality=0.85),
    ]
    assert pareto_front(points, cost="labels/s") == [3, 1, 0]
    # as dollars the cheap ones are ahead, and the dear ones must be better
    assert pareto_front(points, cost="usd/1k") == [3]
    assert pareto_front([make_point(), make_point()], cost="usd/1k") == [0, 1]


def test_a_frontier_shows_every_judge_once_with_its_interval():
    points = [make_point("fast", 1000, 0.7), make_point("good", 10, 0.9), make_point("bad", 5, 0.6)]
    figure = frontier(points, cost="labels/s")
    front, on_it, beaten = figure.data
    assert list(front.x) == [10, 1000]
    assert (list(on_it.text), list(beaten.text)) == (["1", "2"], ["3"])
    assert on_it.hovertext[0].startswith("<b>good</b><br>agreement with gold 0.900 (0.880 to 0.917, 1,000 pairs)")
    assert on_it.error_y.array[0] == pytest.approx(points[1].quality.high - 0.9)
    assert on_it.error_y.arrayminus[0] == pytest.approx(0.9 - points[1].quality.low)
    assert figure.layout.xaxis.type == "log"
    assert [row[:3] for row in figure.layout.meta["rows"]] == [
        ["1", "good", "10"],
        ["2", "fast", "1,000"],
        ["3", "bad", "5"],
    ]


def test_a_frontier_of_nothing_or_of_no_numbers_is_refused():
    nowhere = JudgePoint(name="lost", cost=1.0, quality=Interval(value=float("nan"), low=0, high=1, pairs=1))
    for points in ([], [nowhere]):
        with pytest.raises(InputError, match="expected at least one, each with finite cost and quality"):
            frontier(points, cost="usd/1k")


def test_a_reliability_figure_has_a_line_per_judge_beside_the_diagonal():
    bins = {"raw": make_bins((0.6, 0.5), (0.95, 0.8)), "calibrated": make_bins((0.55, 0.54))}
    diagonal, raw, calibrated = reliability(bins, folded=True).data
    assert list(diagonal.x) == list(diagonal.y) == [0.5, 1]
    assert (list(raw.x), list(raw.y)) == ([0.6, 0.95], [0.5, 0.8])
    assert calibrated.name == "calibrated"
    assert raw.marker.symbol != calibrated.marker.symbol
    assert list(reliability(bins, folded=False).data[0].x) == [0, 1]
    with pytest.raises(InputError, match="bins for each"):
        reliability({"raw": []}, folded=True)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_name_is_never_markup(attack: str, tmp_path: Path):
    figures = {
        attack: frontier([make_point(attack), make_point("other", 99)], cost="usd/1k", quality=attack),
        "again": reliability({attack: make_bins((0.6, 0.5))}, folded=True),
    }
    page = Page(write_page(figures, tmp_path / "page.html", title=attack, notes=[attack]))
    plain = Page(write_page({"a": figures["again"]}, tmp_path / "plain.html", title="t", notes=["n"]))
    assert page.tags.count("script") == len(page.scripts) == 2
    assert set(page.tags) - set(plain.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src")]
    assert page.text.count(attack) >= 3
    # Plotly reads a little markup in texts of its own: only ours is in them.
    for figure in figures_in(page).values():
        for trace in figure["data"]:
            for text in [trace["name"], *trace.get("hovertext", [])]:
                assert not re.search(r"<(?!/?b>|br>)", text)


def test_a_name_of_any_length_stays_within_its_space():
    figure = frontier([make_point("long " * 100 + "\n\0\x1b[31m\u202eend")], cost="usd/1k")
    (hover,) = figure.data[1].hovertext
    assert len(hover) < 250
    assert hover.partition("</b>")[0].endswith("…")
    assert "\n" not in hover


def test_a_page_needs_nothing_from_elsewhere_and_fits_a_phone(tmp_path: Path):
    path = write_page({"One": frontier([make_point()], cost="usd/1k")}, tmp_path / "new" / "page.html", title="Judges")
    page = Page(path)
    attributes = dict(page.attributes)
    assert not {"src", "href"} & set(attributes)
    assert "the drawing library" in page.scripts[0]
    assert any(value == "width=device-width, initial-scale=1" for _, value in page.attributes)
    assert any(value and value.startswith("default-src 'none'") for _, value in page.attributes)
    assert list(figures_in(page)) == ["figure-0"]
    assert figures_in(page)["figure-0"]["layout"]["xaxis"]["fixedrange"] is True
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written_is_reported(tmp_path: Path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_page({}, tmp_path / "page.html", title="Judges")
