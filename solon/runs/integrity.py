"""Whether the append-only files are as the last checkpoint left them. `--resume` and `solon doctor` share this check,
so they agree.

    checkpoint step-000040: records.json        lines, bytes and sha256 of each file at that moment
    metrics.jsonl  ████████████████░░░░░        its beginning must be the same; later lines may follow
    parts.jsonl    one line per part written    names, bytes and sha256 of the parts of rollouts and labels; the last
                                                line of a part counts, since rewards are filled in later

A part's line is written before the part is renamed into place, so a process that dies in between leaves the part as an
earlier line describes it. Reads only, except for `drop_unplaced`.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from solon.files.regular import require_regular

RECORDS = "records.json"
PARTS = "parts.jsonl"
QUARANTINE = "quarantine.jsonl"
CHAINED = ("metrics.jsonl", "events.jsonl", "groups.jsonl", QUARANTINE, PARTS)
"""Append-only files, written line by line."""
ACCOUNTED = ("metrics.jsonl", "events.jsonl")
"""Those that record where every group is."""
REREAD_STAGES = ("prompts", "heldout")
"""Stages whose rows of `quarantine.jsonl` every start writes again: they are not counted."""
HASHED_BYTES = 64 * 2**20
"""Total bytes of lines and of parts, unless everything is to be read."""
_MAGIC = b"PAR1"


class Extent(BaseModel):
    """The extent of a file."""

    model_config = ConfigDict(frozen=True)

    lines: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class Records(BaseModel):
    """A checkpoint's record of the files beside it. Empty in a run directory of an older version."""

    model_config = ConfigDict(frozen=True)

    files: Mapping[str, Extent] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that differs from what was written."""

    name: str
    kind: Literal["missing", "cut", "edited", "unreadable"]
    text: str
    """A message: `metrics.jsonl was cut: 20 of 40 lines are there`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """The findings about all files."""

    is_recorded: bool
    """False: no checkpoint has a record of them."""
    damages: tuple[Damage, ...] = ()
    unread: tuple[str, ...] = ()
    """Files too large to be compared."""

    @property
    def has_account(self) -> bool:
        """Whether the lines that record where every group is are complete, as far as is known."""
        return not any(damage.name in ACCOUNTED for damage in self.damages)


UNRECORDED = Integrity(is_recorded=False)


@dataclass(slots=True)
class Running:
    """Lines, bytes and digest of a file as it grows."""

    name: str
    lines: int = 0
    nbytes: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, text: bytes) -> None:
        """Whole lines."""
        counted = _counted(self.name, text)
        self.lines += counted.count(b"\n")
        self.nbytes += len(counted)
        self._digest.update(counted)

    def extent(self) -> Extent:
        """Lines, bytes and digest up to now."""
        return Extent(lines=self.lines, bytes=self.nbytes, sha256=self._digest.hexdigest())


def part_line(name: str, file: Path, *, rows: int) -> dict[str, Any]:
    """The line of `parts.jsonl` for a part `rollouts/part-000003.parquet` whose content is in `file`."""
    return {"part": name, "rows": rows, "bytes": file.stat().st_size, "sha256": _sha256(file)}


def read_records(checkpoint: Path) -> Records | None:
    """A checkpoint's record of the files beside it; None: it has none, being of an older version."""
    try:
        return Records.model_validate_json((checkpoint / RECORDS).read_bytes())
    except (OSError, ValidationError):
        return None


def examine(directory: Path, records: Records | None, *, thorough: bool = False) -> Integrity:
    """Compare the files of a run directory with the record of its last whole checkpoint. thorough: at any size."""
    damages: list[Damage] = []
    unread: list[str] = []
    for name, extent in (records.files if records else {}).items():
        if not _is_inside(name):
            continue
        path = directory / name
        if not thorough and extent.bytes > HASHED_BYTES and _size(path) >= extent.bytes:
            unread.append(name)
        elif (damage := _compare(path, extent)) is not None:
            damages.append(damage)
    promised = records.files[PARTS].lines if records and PARTS in records.files else 0
    found, left_out = _examine_parts(directory, promised=promised, thorough=thorough)
    return Integrity(is_recorded=records is not None, damages=(*damages, *found), unread=(*unread, *left_out))


def said_of(found: Integrity, checkpoint: str) -> list[str]:
    """The messages of `--resume` and `solon doctor` about damaged files, a sentence each. checkpoint: the last whole
    one."""
    if not found.damages:
        return []
    lines = [damage.text for damage in found.damages]
    then = f"--resume continues from {checkpoint}, for which nothing of these files is needed"
    if not found.has_account:
        then += "; the groups that only the lost lines named count as that checkpoint has them"
    return [*lines, then]


def drop_unplaced(directory: Path) -> None:
    """Removes the last line of `parts.jsonl` when its process died before the part was renamed into place: the part is
    still beside it."""
    path = directory / PARTS
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        last = json.loads(lines[-1])
        if not _is_inside(str(last["part"])):
            return
        place = directory / str(last["part"])
        if _sha256(place.with_name(f".{place.name}.tmp")) != last["sha256"]:
            return
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return  # the part is in place
    with path.open("rb+") as file:
        file.truncate(sum(map(len, lines[:-1])))


def _compare(path: Path, extent: Extent) -> Damage | None:
    try:
        require_regular(path)
        text = _counted(path.name, path.read_bytes())
    except FileNotFoundError:
        return (
            Damage(path.name, "missing", f"{path.name} is missing: it had {extent.lines} lines")
            if extent.lines
            else None
        )
    except OSError as error:
        return Damage(path.name, "unreadable", f"{path.name} cannot be read: {error.strerror}")
    start = text[: extent.bytes]
    if hashlib.sha256(start).hexdigest() == extent.sha256:
        return None
    lines = text.count(b"\n")
    if lines < extent.lines:
        return Damage(path.name, "cut", f"{path.name} was cut: {lines} of {extent.lines} lines are there")
    return Damage(
        path.name, "edited", f"{path.name} was edited: its first {extent.lines} lines are not those that were written"
    )


def _examine_parts(directory: Path, *, promised: int, thorough: bool) -> tuple[list[Damage], list[str]]:
    """promised: lines of `parts.jsonl` whose parts must exist; of the later ones a killed process may have none."""
    damages, unread, left = [], 0, HASHED_BYTES
    for name, (is_promised, lines) in reversed(_part_lines(directory / PARTS, promised).items()):
        path = directory / name
        try:
            state = path.stat()
        except OSError:
            if is_promised:
                damages.append(Damage(name, "missing", f"{name} is missing: it had {lines[-1]['rows']} rows"))
            continue
        if not stat.S_ISREG(state.st_mode):
            damages.append(Damage(name, "unreadable", f"{name} cannot be read: it is no file"))
            continue
        size = state.st_size
        alike = [line for line in lines if line["bytes"] == size]
        if alike:
            left -= size
            if left < 0 and not thorough:
                unread += 1
                continue
        try:
            if alike and _sha256(path) in [line["sha256"] for line in alike]:
                continue
            is_whole = _is_parquet(path, size)
        except OSError as error:
            damages.append(Damage(name, "unreadable", f"{name} cannot be read: {error.strerror}"))
            continue
        if not is_whole:
            text = f"{name} cannot be read: {size} of {lines[-1]['bytes']} bytes are there, its end is missing"
            damages.append(Damage(name, "unreadable", text))
        else:
            damages.append(Damage(name, "edited", f"{name} was edited: its digest is not that of what was written"))
    return damages[::-1], [f"{unread} parts of rollouts and labels"] if unread else []


def _part_lines(path: Path, promised: int) -> dict[str, tuple[bool, list[Mapping[str, Any]]]]:
    """By part, the lines that may describe it: the last promised one, and all after it."""
    found: dict[str, tuple[bool, list[Mapping[str, Any]]]] = {}
    try:
        require_regular(path)
        text = path.read_bytes()
    except OSError:
        return {}
    for number, raw in enumerate(text.split(b"\n")[:-1]):
        try:
            line = json.loads(raw)
            name = str(line["part"])
            known = {"rows": int(line["rows"]), "bytes": int(line["bytes"]), "sha256": str(line["sha256"])}
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # reported as a damaged file
        if not _is_inside(name):
            continue
        if number < promised:
            found[name] = (True, [known])
        else:
            is_promised, lines = found.get(name, (False, []))
            found[name] = (is_promised, [*lines, known])
    return found


def _is_inside(name: str) -> bool:
    """Whether a part may have this name: it is a valid path below the run directory."""
    return name.isprintable() and not Path(name).is_absolute() and ".." not in Path(name).parts


def _counted(name: str, text: bytes) -> bytes:
    """The append-only lines."""
    if name != QUARANTINE:
        return text
    return b"".join(line for line in text.splitlines(keepends=True) if _is_counted(line))


def _is_counted(line: bytes) -> bool:
    try:
        stage = json.loads(line)["stage"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return stage not in REREAD_STAGES


def _is_parquet(path: Path, size: int) -> bool:
    """Whether a file begins and ends as Parquet files do."""
    if size < 2 * len(_MAGIC) + 4:
        return False
    with path.open("rb") as file:
        begins = file.read(len(_MAGIC)) == _MAGIC
        file.seek(size - len(_MAGIC))
        return begins and file.read() == _MAGIC


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
