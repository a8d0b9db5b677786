"""The files of a run directory as another process finds them: torn, half written, huge or missing. Reads only; never
waits for the run or disturbs it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.checkpoints.folder import MANIFEST, CheckpointFolder, Manifest, verify
from solon.errors import InputError
from solon.files.regular import require_regular
from solon.ledger.snapshot import LedgerSnapshot

MOST_TIME = 2.0**36
"""Seconds since the epoch; the year 4147."""
HASHED_BYTES = 256 * 2**20
"""Total for checkpoints, youngest first: reading this much takes half a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Objects of a .jsonl file."""

    records: tuple[Mapping[str, Any], ...] = ()
    is_whole: bool = True
    """False: only the end of the file was read."""
    is_torn: bool = False
    """The last line is incomplete: its writer died, or is still writing it."""
    unreadable: int = 0
    """Complete lines that are no JSON objects."""

    @property
    def last_time(self) -> float:
        """`time` of the last line; 0 when there is none."""
        return time_of(self.records[-1]) if self.records else 0.0


def time_of(record: Mapping[str, Any], key: str = "time") -> float:
    """When an object was written; 0 when it has no time."""
    value = record.get(key)
    # A number beyond all dates is of a damaged file; it may not even fit a float.
    return float(value) if isinstance(value, int | float) and 0 <= value < MOST_TIME else 0.0


def read_lines(path: Path, *, last_bytes: int | None = None, only: tuple[str, ...] = ()) -> Lines:
    """The lines of a file, or those of its last `last_bytes`. only: skip lines that contain none of these texts
    unparsed. A missing file has none."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - last_bytes) if last_bytes is not None else 0
            file.seek(start)
            text = file.read(size - start)
    except OSError:
        return Lines()
    if start:
        text = text.partition(b"\n")[2]
    *lines, rest = text.split(b"\n")
    wanted = [word.encode() for word in only]
    records, unreadable = [], 0
    for line in lines:
        if wanted and not any(word in line for word in wanted):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            unreadable += 1
    return Lines(records=tuple(records), is_whole=not start, is_torn=bool(rest), unreadable=unreadable)


def read_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The object in a JSON file. None: missing or unusable; `problems` then says why."""
    try:
        require_regular(path)
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {str(error)[:200]}")
        return None
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no JSON object")
        return None
    return value


def is_locked(directory: Path) -> bool | None:
    """Whether a process holds the run directory (`RunDirectory.lock`). None: its file system does not say."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, and released at once: two readers do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def is_alive(pid: int) -> bool:
    """Whether this machine has a process with this id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointState:
    """The facts about one checkpoint."""

    name: str
    step: int
    problem: str = ""
    """Empty: it is whole, as far as it was read."""
    is_read: bool = True
    """False: its files exist, but were too large to be compared with their digests."""
    cut: LedgerSnapshot | None = None


def read_checkpoints(folder: CheckpointFolder, *, thorough: bool) -> list[CheckpointState]:
    """Every checkpoint, in the order in which `--resume` tries them. thorough: read them whole, however large."""
    found, left = [], HASHED_BYTES
    for path in folder.candidates():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        left -= size
        found.append(_read_checkpoint(path, is_read=thorough or left >= 0))
    return found


def _read_checkpoint(path: Path, *, is_read: bool) -> CheckpointState:
    digits = "".join(c for c in path.name.partition("-")[2] if c.isdigit())
    step = int(digits or 0)
    try:
        manifest = verify(path) if is_read else _present(path)
        step = manifest.step
        cut = LedgerSnapshot.model_validate_json((path / "ledger.json").read_bytes())
    except (InputError, OSError, ValueError) as error:
        return CheckpointState(name=path.name, step=step, problem=" ".join(str(error).split())[:300], is_read=is_read)
    return CheckpointState(name=path.name, step=step, is_read=is_read, cut=cut)


def _present(path: Path) -> Manifest:
    """The manifest, when all its files are there."""
    manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    missing = [name for name in manifest.files if not (path / name).is_file()]
    if missing:
        raise InputError(f"checkpoint {path}: {missing[0]} is not there; it is incomplete")
    return manifest


def left_over(directory: Path) -> list[str]:
    """Partial files of a killed process; the next start removes them."""
    parts = ("*.tmp", "*/part-*.tmp", "*/.part-*.tmp")
    checkpoints = ("checkpoints/.step-*.tmp", "checkpoints/.step-*.gone", "checkpoints/*.tmp")
    found = {path for pattern in (*parts, *checkpoints) for path in directory.glob(pattern)}
    found |= {path for path in (directory / ".ballast",) if path.exists()}
    return sorted(str(path.relative_to(directory)) for path in found)


def free_bytes(directory: Path) -> int:
    """Free space on the disk of the run directory."""
    return shutil.disk_usage(directory).free
