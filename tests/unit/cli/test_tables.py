"""Tables of every command on terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.cli.tables import print_table


def printed(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, _environ={})
    print_table(console, table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def make_table() -> Table:
    table = Table("judge", title="what judges cost")
    for name in ("verdicts/s", "agreement"):
        table.add_column(name, no_wrap=True)
    table.add_row(Text("a_judge_with_a_long_name"), "1234", "97.0% ±1.2")
    table.add_row(Text("another"), "12", "91.0% ±2.2")
    return table


def test_a_wide_terminal_shows_rows():
    assert any("another" in line and "12" in line and "91.0%" in line for line in printed(make_table(), 80))


@pytest.mark.parametrize("width", [20, 30])
def test_a_narrow_terminal_shows_each_cell_with_its_title(width: int):
    lines = printed(make_table(), width)
    assert lines[0] == "what judges cost"
    assert "verdicts/s: 1234" in lines
    assert "judge: another" in lines
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [20, 30, 79, 80])
def test_no_word_is_broken_that_fits_a_line(width: int):
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("  checkpoints", "3, the last after step 30, written a moment ago")
    table.add_row("", "an older one is damaged")
    words = " ".join(printed(table, width)).split()
    assert " ".join(words) == "checkpoints 3, the last after step 30, written a moment ago an older one is damaged"
