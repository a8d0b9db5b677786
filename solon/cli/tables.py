"""Tables that stay readable on a narrow terminal."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

LEAST = 16
"""Characters that a column with running text needs."""


def print_table(console: Console, table: Table) -> None:
    """The table; where its columns do not fit, each row as lines of `title: cell`."""
    if needed(table) <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(table.title)
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            if title := str(column.header) if table.show_header else "":
                console.print(Text.assemble((f"{title}: ", "dim"), _text(cell)))
            elif _text(cell).plain.strip():
                console.print(_text(cell))


def needed(table: Table) -> int:
    """The line width that the table needs to stay readable."""
    return sum(_width(column, with_header=table.show_header) + 2 for column in table.columns)


def _width(column: Column, *, with_header: bool) -> int:
    cells = [_text(cell).plain for cell in column.cells]
    widest = max([cell_len(text) for text in cells] + [cell_len(str(column.header)) if with_header else 0], default=0)
    can_shrink = not column.no_wrap or column.ratio is not None
    return min(widest, LEAST) if can_shrink else widest


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))
