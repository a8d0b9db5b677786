"""Files of rows by format: JSON lines, a JSON list, CSV, Parquet, Arrow. UTF-8, or UTF-16 with a byte order mark."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from solon.errors import InputError, short
from solon.files.plain_text import excerpt
from solon.files.row_sources import format_of

MAX_LINE_BYTES = 64 * 2**20
"""Longest line of text: a row is a prompt and a few answers."""
MAX_LIST_BYTES = 2**30
"""Largest file that is one JSON list, which is read in one piece."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

SHARE_GPT = (
    "turns {from, value}, as ShareGPT writes them: turn them into {role, content} (human is user, gpt is assistant), "
    "leave out the last answer"
)

Row = tuple[int, str, Any]
"""(line or row number from 1, "line" or "row", the row)."""


class BrokenRowError(ValueError):
    """A malformed row. `excerpt`: its beginning."""

    def __init__(self, message: str, excerpt: str = "") -> None:
        super().__init__(message)
        self.excerpt = excerpt


def file_rows(path: Path, *, what: str, columns: tuple[str, ...] = ()) -> Iterator[Row]:
    """Rows of one file. Raises InputError or OSError when it cannot be read."""
    ending, compression = format_of(path)
    if ending == ".parquet":
        return _parquet_rows(path, what, columns)
    if ending in (".arrow", ".feather"):
        return _arrow_rows(path, what, columns)
    if ending in (".csv", ".tsv"):
        return _csv_rows(path, compression, what, columns)
    return _json_rows(path, compression, what)


# --- JSON ------------------------------------------------------------------------------------------------------------


def _json_rows(path: Path, compression: str, what: str) -> Iterator[Row]:
    with _opened(path, compression) as file:
        first = next((line for line in _lines(file) if line.strip()), b"").lstrip(codecs.BOM_UTF8).lstrip()
    if first[:1] in (b"[", b"{") and not _is_json(first):
        yield from _whole_or_lines(path, compression, what)
    elif first[:1] == b"[":
        listed = _whole(path, compression, what)
        yield from _line_rows(path, compression) if listed is None else _list_rows(listed)
    else:
        yield from _line_rows(path, compression)


def _whole_or_lines(path: Path, compression: str, what: str) -> Iterator[Row]:
    """The first line is not JSON by itself: either one value over several lines, or a broken first line."""
    value = _whole(path, compression, what)
    if isinstance(value, list):
        yield from _list_rows(value)
    elif isinstance(value, dict):
        raise InputError(
            f"{what} file {path} is one JSON object with {short(sorted(map(str, value)))}, expected a list of objects "
            "or one object a line"
        )
    else:
        yield from _line_rows(path, compression)


def _list_rows(rows: list[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        yield number, "row", row


def _whole(path: Path, compression: str, what: str) -> Any:
    """The file as one JSON value; None when it is not one."""
    with _opened(path, compression) as file:
        text = file.read(MAX_LIST_BYTES + 1)
    if len(text) > MAX_LIST_BYTES:
        if format_of(path)[0] != ".json":
            return None
        raise InputError(
            f"{what} file {path} is one JSON value of more than {MAX_LIST_BYTES >> 20} MiB, expected one object a "
            "line; convert it, as with `jq -c '.[]'`"
        )
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _line_rows(path: Path, compression: str) -> Iterator[Row]:
    with _opened(path, compression) as file:
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():  # a blank line is not a row
                yield number, "line", _parsed(line)


def _parsed(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        return BrokenRowError(f"longer than {MAX_LINE_BYTES >> 20} MiB", _begins(line))
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BrokenRowError("not UTF-8", _begins(line))
    except (ValueError, RecursionError) as error:
        hint = "; has zero bytes, as UTF-16 has" if b"\0" in line[:100] else ""
        return BrokenRowError(f"not JSON ({str(error)[:60]}{hint})", _begins(line))


def _begins(line: bytes) -> str:
    return excerpt(line[:1000].decode("utf-8", "backslashreplace"))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines; only the beginning of a line that is too long, so that none fills the memory."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def _opened(path: Path, compression: str) -> BinaryIO:
    """Decompressed bytes of a file, in UTF-8."""
    if compression:
        import pyarrow as pa

        file: Any = io.BufferedReader(pa.input_stream(str(path), compression=compression), 1 << 20)
    else:
        file = path.open("rb")
    if file.peek(2)[:2] not in _UTF16:
        return file  # type: ignore[no-any-return]
    return io.BufferedReader(_Recoded(io.TextIOWrapper(file, encoding="utf-16", errors="replace", newline="")))


class _Recoded(io.RawIOBase):
    """A text as UTF-8 bytes."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self._text.read(1 << 16).encode("utf-8", "replace")
        taken, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._text.close()
        super().close()


# --- CSV -------------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, compression: str, what: str, columns: tuple[str, ...]) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = "\t" if format_of(path)[0] == ".tsv" else ","
    place = f"{what} file {path}"
    with io.TextIOWrapper(
        _opened(path, compression), encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{place}: the first line is not a header ({error})") from None
        if header is None:
            return
        _need_column(header, columns, place)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise InputError(f"{place}: line {number} opens a quote that is never closed; close it") from None
                yield number, "line", BrokenRowError(f"not CSV ({error})")
                continue
            if cells is None:
                return
            if cells:
                yield number, "line", _cells(header, cells)


def _cells(header: list[str], cells: list[str]) -> Any:
    shown = excerpt(short(cells))
    if len(cells) != len(header):
        return BrokenRowError(f"has {len(cells)} cells, expected {len(header)}", shown)
    if any(0xDC80 <= ord(c) <= 0xDCFF for cell in cells if not cell.isascii() for c in cell):
        return BrokenRowError("not UTF-8", shown)
    row: dict[str, Any] = {name: cell or None for name, cell in zip(header, cells, strict=True)}
    if isinstance(row.get("tags"), str):
        row["tags"] = row["tags"].replace(",", " ").split()
    return row


# --- Parquet and Arrow -----------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, what: str, columns: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    def batches() -> Iterator[Any]:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _need_column(names, columns, f"{what} file {path}")
            wanted = [name for name in names if name in columns] if columns else None
            yield from file.iter_batches(batch_size=4096, columns=wanted)

    return _table_rows(batches(), f"{what} file {path} cannot be read as Parquet")


def _arrow_rows(path: Path, what: str, columns: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        with pa.OSFile(str(path), "rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            _need_column(reader.schema.names, columns, f"{what} file {path}")
            if is_file:
                yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                yield from reader

    return _table_rows(batches(), f"{what} file {path} cannot be read as Arrow")


def _table_rows(batches: Iterator[Any], cannot: str) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # wrong offsets would be read beyond the end
            for row in batch.to_pylist():
                number += 1
                yield number, "row", row
    except InputError:
        raise
    except (pa.ArrowException, ValueError, OverflowError, OSError, KeyError) as error:
        raise InputError(f"{cannot}: {error}; check the file, or write it again") from None


def _need_column(names: list[str], columns: tuple[str, ...], place: str) -> None:
    if columns and columns[0] not in names:
        raise InputError(f"{place} has no column `{columns[0]}`, only {short(sorted(names))}{column_hint(names)}")


def column_hint(found: Any) -> str:
    """The remedy if the column has another name. found: a row, or only the names of the columns."""
    known = [name for name in ("messages", "prompts", "question", "instruction", "query", "text") if name in found]
    turns = (
        {name: set(value[0]) for name, value in found.items() if _has_turns(value)} if isinstance(found, dict) else {}
    )
    foreign = [name for name, keys in turns.items() if {"from", "value"} <= keys]
    chats = [name for name, keys in turns.items() if {"role", "content"} <= keys and name not in ("chosen", "rejected")]
    if not known and foreign:
        return f"; `{foreign[0]}` has {SHARE_GPT}, and set data.column = {foreign[0]!r}"
    if not known and not chats and "conversations" in found:
        return f"; set data.column = 'conversations' if it has turns {{role, content}}; if it has {SHARE_GPT} first"
    if not known and not chats and "chosen" in found and "rejected" in found:
        return (
            "; `solon label` reads `chosen` and `rejected`; to train, write the turns before the answer to a column of "
            "their own"
        )
    shown = (*known, *chats, "NAME")[0]
    return f"; set data.column = {shown!r} if the prompts are there"


def _has_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
