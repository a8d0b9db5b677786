"""Resolves a name in a run file: a file, a glob, a folder of files, a saved dataset, a dataset of the hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from solon.errors import InputError, short

TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLE_FORMATS = (".parquet", ".arrow", ".feather")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
EXPECTED = (
    "expected .jsonl, .json, .csv, .tsv (each also with .gz, .bz2, .lz4 or .zst), .parquet, .arrow, a folder or glob "
    "of such files, a saved dataset, or a hub dataset like org/name"
)
_NEVER_A_DATASET = (*TEXT_FORMATS, *TABLE_FORMATS, *COMPRESSIONS, ".txt", ".xlsx", ".yaml", ".toml", ".zip", ".tar")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """The files to read."""

    kind: Literal["files", "saved", "hub"]
    files: tuple[Path, ...] = ()
    """In order; for a saved dataset its folder."""


def find_source(source: str | Path, *, what: str, split: str) -> RowSource:
    """Raises InputError when there is no readable source; OSError from the file system."""
    path = Path(source)
    if path.is_dir():
        if any((path / name).exists() for name in ("state.json", "dataset_info.json", "dataset_dict.json")):
            return RowSource(kind="saved", files=(path,))
        return RowSource(kind="files", files=_in_folder(path, what, split))
    if path.exists():
        if not format_of(path)[0]:
            raise InputError(f"{what} file {path} ends in {path.suffix!r}, {EXPECTED}")
        return RowSource(kind="files", files=(path,))
    if glob.has_magic(str(source)):
        found = sorted(Path(one) for one in glob.glob(str(source), recursive=True))  # noqa: PTH207 - may be absolute
        files = [one for one in found if one.is_file() and format_of(one)[0]]
        if not files:
            raise InputError(f"{what} file {source}: no file matches, {EXPECTED}; check the pattern")
        return RowSource(kind="files", files=tuple(_of_split(files, split, what, source)))
    if is_dataset_name(str(source)):
        return RowSource(kind="hub")
    raise InputError(f"{what} file {path} does not exist; check the path")


def format_of(path: Path) -> tuple[str, str]:
    """(format, compression) by the name of a file: `(".csv", "gzip")`; the format of an unknown one is empty.

    >>> format_of(Path("a.jsonl.zst")), format_of(Path("a.txt"))
    (('.jsonl', 'zstd'), ('', ''))
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1], "") if suffixes else ""
    if compression:
        suffixes = suffixes[:-1]
    known = TEXT_FORMATS if compression else (*TEXT_FORMATS, *TABLE_FORMATS)
    return (suffixes[-1], compression) if suffixes and suffixes[-1] in known else ("", "")


def is_dataset_name(name: str) -> bool:
    """Whether a name that is no local path may be a hub dataset, `org/name`.

    >>> is_dataset_name("org/prompts"), is_dataset_name("data/prompts.jsonl")
    (True, False)
    """
    looks = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
    return looks and Path(name).suffix.lower() not in _NEVER_A_DATASET


def _in_folder(folder: Path, what: str, split: str) -> tuple[Path, ...]:
    entries = sorted(one for one in folder.iterdir() if one.name[0] not in "._")
    files = [one for one in entries if one.is_file() and format_of(one)[0]]
    if not files:
        inner = [one.name for one in entries if one.is_dir()]
        hint = f"; it has the folders {short(inner)}: name one, or a glob such as {folder}/*/*.parquet" if inner else ""
        raise InputError(f"{what} folder {folder} is not a saved dataset and has no file to read, {EXPECTED}{hint}")
    return tuple(_of_split(files, split, what, folder))


def _of_split(files: Sequence[Path], split: str, what: str, source: str | Path) -> list[Path]:
    """The files of a split, by their names or their folder's; all files if no split is given and they share one."""
    if split:
        found = [one for one in files if split.lower() in _words(one)]
        if found or len(files) > 1:
            if not found:
                raise InputError(f"{what} file {source} has no file of the split {split!r}, only {_names(files)}")
            return found
        return list(files)
    splits = {name for one in files for name in _SPLITS if name in _words(one)}
    if len(splits) > 1:
        raise InputError(
            f"{what} file {source} has files of the splits {', '.join(sorted(splits))}; name one with data.split"
        )
    return list(files)


def _words(path: Path) -> set[str]:
    return {path.parent.name.lower(), *re.split(r"[^a-z0-9]+", path.name.lower())}


def _names(files: Iterable[Path]) -> str:
    return short([one.name for one in files])
