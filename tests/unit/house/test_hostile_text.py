"""Text from models, files and machines is data to every program that displays it: a terminal, a page, a judge."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from solon.cli import check, compare, doctor, examine, label_view, view
from solon.cli.main import _fail
from solon.cli.terminal import visible
from solon.doctor.diagnosis import Diagnosis
from solon.errors import InputError
from solon.feedback.interfaces import Item
from solon.feedback.prompting.markers import escaped, marker_pattern
from solon.feedback.prompting.prompts import TEMPLATES
from solon.feedback.prompting.text_prompts import TextPrompts
from solon.feedback.quality.intervals import wilson
from solon.feedback.trials import constitution_tests
from solon.feedback.trials.examination import Examination, SubsetResult
from solon.records import Message
from solon.report.figures import JudgePoint, frontier, write_page
from tests.unit.attacks import ALL, PROMPT
from tests.unit.report.test_figures import Page

FORMATTING = re.compile(r"\x1b\[[0-9;]*m")
"""rich's own output: colours and bold, nothing else."""


def make_console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=400, highlight=False, legacy_windows=False), out


def assert_is_harmless(shown: str) -> None:
    rest = FORMATTING.sub("", shown)
    odd = sorted({c for c in rest if not c.isprintable() and c != "\n"})
    assert not odd, f"{odd} in {rest!r}"


@pytest.mark.parametrize("attack", ALL, ids=ascii)
def test_a_visible_text_has_no_terminal_control(attack: str):
    shown = visible(f"a {attack} b")
    assert all(c == "\n" or c.isprintable() for c in shown)
    assert shown.startswith("a ")


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters()))
def test_any_text_can_be_made_visible(text: str):
    shown = visible(text)
    assert all(c == "\n" or c.isprintable() for c in shown)
    assert visible(shown) == shown
    shown.encode()


@pytest.mark.parametrize("attack", ALL, ids=ascii)
def test_a_message_is_one_harmless_line(attack: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        _fail(str(InputError(f"got {attack}, expected a word")), 2)
    said = capsys.readouterr().err
    assert_is_harmless(said)
    assert len(said.splitlines()) == 1


def show_tests(console: Console, attack: str) -> None:
    shown = check._Show(quiet=False)
    shown._console = console
    shown.line(attack)
    shown.warn([attack])
    result = constitution_tests.TestResult(
        number=0, principles=(attack,), prompt=attack, expected="a", got="invalid", margin=None, detail=attack
    )
    shown.table([result])


def show_examination(console: Console, attack: str) -> None:
    row = SubsetResult(
        subset=attack, pairs=1, accuracy=wilson(0.5, 1), invalid=0, ties=0, consistent=None, one_order=None
    )
    console.print(examine._table(Examination(subsets=(row, row), whole=row, mean_of_subsets=0.5)))


def show_run(console: Console, attack: str) -> None:
    shown = view.PlainView(console)
    shown.note(attack)
    shown.starting([attack])
    shown.evaluated("before", {attack: 0.5, "mean": 0.5})
    console.print(view.end_table({"eval": {"before": {attack: 0.5, "mean": 0.5}, "after": {attack: 0.6}}}))


def show_labels(console: Console, attack: str) -> None:
    shown = label_view.LabelView(quiet=False)
    shown._console = console
    shown.note(attack)


def show_diagnosis(console: Console, attack: str) -> None:
    found = Diagnosis(status=attack, is_well=True, headline=attack, findings={"numbers": [attack]}, do=[attack])
    doctor.show(found, Path("run"), console)


SHOWS = [show_tests, show_examination, show_run, show_labels, show_diagnosis]


@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize("attack", [a for a in ALL if "\n" not in a], ids=ascii)
def test_no_view_lets_a_text_move_the_cursor_or_be_markup(show: Any, attack: str):
    console, out = make_console()
    show(console, attack)
    said = FORMATTING.sub("", out.getvalue())
    assert_is_harmless(out.getvalue())
    assert "".join(visible(attack).split()) in "".join(said.split())  # literally, without its effect


def test_the_name_of_a_judge_in_a_comparison_is_text():
    console, out = make_console()
    row = type("Row", (), {"name": "[/] \x1b[2J\u202e"})
    comparison: Any = type("Comparison", (), {"rows": [row]})
    console.print(compare.table("t", (), comparison))
    assert_is_harmless(out.getvalue())
    assert "[/] \\x1b[2J\\u202e" in out.getvalue()


@pytest.mark.parametrize("attack", ALL, ids=ascii)
def test_a_page_shows_every_text_as_text(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    point = JudgePoint(name=attack or "j", cost=1.0, quality=wilson(0.8, 100), note=attack)
    figure = frontier([point], cost="labels/s")
    figure.update_layout(meta={"columns": [attack], "rows": [[attack]]})
    path = write_page({attack: figure}, tmp_path / "page.html", title=attack, notes=[attack])
    page = Page(path)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert "a" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(c == "\n" or c.isprintable() for c in page.text)
    assert not set(path.read_text(encoding="utf-8")) & set("\u202e\u2066\u2067\u200b\u2028\u2029\x1b\x9b\x85")


@pytest.mark.parametrize("attack", PROMPT, ids=ascii)
def test_no_answer_can_end_its_fence_or_speak_for_the_template(attack: str):
    prompts = TextPrompts(TEMPLATES["assistant"], secret=b"s" * 32)

    def lay(answer: str) -> str:
        item = Item(
            task="pairwise",
            conversation=(Message(role="user", content="hi"),),
            answers=(answer, "other"),
            principle_id="p",
            question="Which is kinder?",
        )
        layout = prompts.lay(item)
        assert layout is not None
        return layout.question.text

    harmless = lay("an answer")
    (nonce,) = set(re.findall(r"<([0-9a-f]{8})>", harmless))
    attacked = lay(attack)
    # The marks are where they were, as often as they were, and the attack stands between two of them.
    for mark in (f"<{nonce}>", f"</{nonce}>"):
        assert attacked.count(mark) == harmless.count(mark)
    sent = escaped(attack.strip(), marker_pattern())
    assert attacked.replace(sent, "an answer", 1) == harmless
