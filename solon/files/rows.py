"""Rows of a user's file: JSON, CSV, Parquet, Arrow, compressed or not, a folder of them, a glob, a saved or a hub
dataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.errors import InputError, short
from solon.files.data_config import ReadConfig
from solon.files.plain_text import excerpt
from solon.files.row_datasets import hub_rows, saved_rows
from solon.files.row_formats import BrokenRowError, column_hint, file_rows
from solon.files.row_sources import find_source

__all__ = ["BrokenRowError", "Place", "Refused", "column_hint", "described", "excerpt_of", "folded", "read_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a row. `str(Place(number=3, unit="line", ordinal=3))` is "line 3"."""

    number: int
    """Line or row number in its file, from 1."""
    unit: str
    """"line" of a text file, "row" of a table."""
    ordinal: int
    """Unique number over all files read together; the same as `number` for a single file."""
    file: str = ""
    """Name of the file, if several are read together."""

    def __str__(self) -> str:
        return f"{self.unit} {self.number}" + (f" of {self.file}" if self.file else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An unusable row. `Refused(place=place, reason="not UTF-8", excerpt="…")`"""

    place: Place
    reason: str
    excerpt: str = ""
    """Beginning and end of the row, harmless to display."""


def read_rows(
    source: str | Path, *, what: str, read: ReadConfig | None = None, columns: Iterable[str] = ()
) -> Iterator[tuple[Place, Any]]:
    """Rows in order, files in the order of their names; an unreadable row is a BrokenRowError.

    what: names the file in messages, as in `prompt file`. columns: the only ones needed, of which the first is
    required; this speeds up reading tables. Raises InputError when the source cannot be read.
    """
    read = read or ReadConfig()
    try:
        yield from _rows(source, what, read, tuple(columns))
    except (OSError, EOFError) as error:
        raise InputError(f"{what} file {source} cannot be read: {error}; check the file, or write it again") from None


def excerpt_of(row: Any) -> str:
    """The content of a row in a short harmless line."""
    return row.excerpt if isinstance(row, BrokenRowError) else excerpt(short(row))


def described(refused: Iterable[Refused], most: int = 5) -> str:
    """The first few reasons with their places: `line 3: not UTF-8; 7 rows: is empty (lines 9, 10, 11, …); …`"""
    return folded(((str(one.place), one.reason) for one in refused), most=most)


def folded(found: Iterable[tuple[str, str]], most: int = 5) -> str:
    """The first few reasons of (place, reason), each once, with the places where it holds.

    >>> folded([("line 1", "is empty"), ("line 2", "is empty"), ("line 4", "not UTF-8")])
    '2 rows: is empty (lines 1, 2); line 4: not UTF-8'
    """
    places: dict[str, list[str]] = {}
    for place, reason in found:
        places.setdefault(reason, []).append(place)
    shown = [
        f"{held[0]}: {reason}" if len(held) == 1 else f"{len(held):,} rows: {reason} ({_listed(held)})"
        for reason, held in itertools.islice(places.items(), most)
    ]
    return "; ".join(shown) + ("; …" if len(places) > most else "")


def _listed(places: list[str], most: int = 3) -> str:
    """`lines 1, 2, 3, …`"""
    shown, rest = places[:most], ", …" if len(places) > most else ""
    units = {place.partition(" ")[0] for place in shown}
    if len(units) == 1 and not any(" of " in place for place in shown):
        return f"{units.pop()}s {', '.join(place.partition(' ')[2] for place in shown)}{rest}"
    return ", ".join(shown) + rest


def _rows(source: str | Path, what: str, read: ReadConfig, columns: tuple[str, ...]) -> Iterator[tuple[Place, Any]]:
    found = find_source(source, what=what, split=read.split)
    if found.kind == "saved":
        for number, row in saved_rows(found.files[0], what, read.split):
            yield Place(number=number, unit="row", ordinal=number), row
    elif found.kind == "hub":
        for number, row in hub_rows(str(source), what, read):
            yield Place(number=number, unit="row", ordinal=number), row
    else:
        before = last = 0
        for path in found.files:
            name = path.name if len(found.files) > 1 else ""
            for number, unit, row in file_rows(path, what=what, columns=columns):
                last = before + number
                yield Place(number=number, unit=unit, ordinal=last, file=name), row
            before = last
