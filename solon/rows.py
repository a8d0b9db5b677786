"""Rows of a file that a user hands in: JSONL, Parquet or a saved Hugging Face dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from solon.errors import InputError


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
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue  # a blank line holds no prompt that could be lost
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield number, ValueError("not UTF-8")
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"not JSON ({str(error)[:60]})")


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{what} folder {path} is not a saved dataset: {error}") from None
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"{what} folder {path} holds the splits {', '.join(map(str, dataset))}; name one, as in {path}/train"
        )
    return iter(enumerate(dataset, start=1))
