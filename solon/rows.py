"""Rows of a file that a user hands in: JSONL, Parquet or a saved Hugging Face dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from solon.errors import InputError, short
from solon.plain_text import excerpt


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row of a file that cannot be used. `Refused(line=3, reason="not UTF-8", excerpt="…")`"""

    line: int
    """Line or row number, from 1."""
    reason: str
    excerpt: str = ""
    """How the row begins and ends, harmless to look at."""


class BrokenRowError(ValueError):
    """A row that is none. `excerpt`: what stands there instead."""

    def __init__(self, message: str, excerpt: str = "") -> None:
        super().__init__(message)
        self.excerpt = excerpt


MAX_LINE_BYTES = 64 * 2**20
"""Of a JSONL file: a row is a prompt and a few answers, not a library."""


def read_rows(path: Path, *, what: str) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, row) of a file; a row that cannot be read is a ValueError that says why.

    what: names the file in messages, as in `prompt file`. Raises InputError when nothing in it can be read.
    """
    if path.is_dir():
        return _dataset_rows(path, what)
    if path.suffix == ".parquet":
        return _parquet_rows(path, what)
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return _jsonl_rows(path)
    raise InputError(f"{what} file {path} ends in {path.suffix!r}, expected .jsonl, .parquet or a saved dataset folder")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue  # a blank line holds no prompt that could be lost
            if len(line) > MAX_LINE_BYTES:
                yield number, BrokenRowError(f"longer than {MAX_LINE_BYTES >> 20} MiB", _begins(line))
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield number, BrokenRowError("not UTF-8", _begins(line))
            except (ValueError, RecursionError) as error:
                yield number, BrokenRowError(f"not JSON ({str(error)[:60]})", _begins(line))


def excerpt_of(row: Any) -> str:
    """What a row holds, in a short harmless line."""
    return row.excerpt if isinstance(row, BrokenRowError) else excerpt(short(row))


def _begins(line: bytes) -> str:
    return excerpt(line[:1000].decode("utf-8", "backslashreplace"))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long only the beginning, so that none fills the memory."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def _parquet_rows(path: Path, what: str) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        raise InputError(f"{what} file {path} cannot be read as Parquet: {error}") from None
    return iter(enumerate(rows, start=1))


def _dataset_rows(path: Path, what: str) -> Iterator[tuple[int, Any]]:
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(str(path))
        if isinstance(dataset, Dataset):
            # The file is mapped into memory as it is: offsets that lie would be read beyond its end.
            dataset.data.table.validate(full=True)
    except Exception as error:  # whatever its own JSON makes the library stumble over
        said = str(error) or type(error).__name__
        raise InputError(f"{what} folder {path} is not a saved dataset: {said}; or it is damaged") from None
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"{what} folder {path} holds the splits {', '.join(map(str, dataset))}; name one, as in {path}/train"
        )
    return _checked(dataset, path, what)


def _checked(dataset: Any, path: Path, what: str) -> Iterator[tuple[int, Any]]:
    rows = iter(dataset)
    for number in range(1, len(dataset) + 1):
        try:
            row = next(rows)
        except Exception as error:  # as above: features that do not fit the data show only when a row is made
            raise InputError(f"{what} folder {path}: row {number} cannot be read ({error})") from None
        yield number, row
