"""The folder of a run: what is written when, and how no written data is ever lost.

Whole files appear by rename; JSON lines and Parquet parts are append-only. A ballast (solon.host.ballast) is released
when the disk is full, so that rows generated so far can still be written and the run can report the failure.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from solon.errors import InputError, RunFailedError
from solon.files.json_text import json_text
from solon.files.regular import require_regular
from solon.host.ballast import Ballast, is_no_space
from solon.host.directory_lock import lock_directory
from solon.runs.integrity import CHAINED, PARTS, Records, Running, drop_unplaced, part_line
from solon.runs.tables import arrow_table

BALLAST_BYTES = 16 * 2**20
CONFIG = "config.json"


class DiskFullError(RunFailedError):
    """The disk of the run directory is full."""

    def __init__(self, message: str, *, is_written: bool = False, who: str = "") -> None:
        """is_written: the data found room in the ballast; no row is lost. who: of several processes the one whose data
        did not fit."""
        super().__init__(message)
        self.is_written, self.who = is_written, who


class UnwritableError(RunFailedError):
    """The run directory was removed, or its disk is read-only or broken."""


class RunDirectory:
    """`RunDirectory.create("runs", "demo")`; a default name gets a number when it is taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ballast = Ballast(path)
        self.keeps_part_digests = False
        """Whether `parts.jsonl` gets a line for every part."""
        self._parts: dict[str, int] = {}
        self._running: dict[str, Running] = {}
        self._unsynced: set[Path] = set()
        self._adding = threading.RLock()
        self.config: Mapping[str, Any] = {}
        """The content of config.json: a folder that lost it is another folder."""
        self._unlock: Callable[[], object] = lambda: None

    @classmethod
    def create(cls, root: str | Path, name: str | None, *, default: str) -> RunDirectory:
        """A new folder. Raises InputError when the name is taken or cannot be a folder name."""
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
            raise InputError(
                f"--name got {name!r}, expected 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or "
                "digit; choose another name"
            )
        stem = re.sub(r"[^\w.-]", "-", default).lstrip(".-_")[:60] or "run"
        chosen = name or f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in ("", *(f"-{n}" for n in range(2, 100))):
            path = Path(root) / f"{chosen}{suffix}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if name is not None:
                    raise InputError(
                        f"run directory {path} exists already; choose another --name or remove it"
                    ) from None
                continue
            except OSError as error:
                raise InputError(_not_writable(path, error)) from None
            directory = cls(path)
            directory.lock()
            directory._lay_ballast()
            return directory
        raise InputError(f"run directory {Path(root) / chosen} exists already; choose another --name")

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """Open a folder, or create it. Raises InputError when that is not possible."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(_not_writable(path, error)) from None
        directory = cls(path)
        directory.lock()
        try:
            directory._remove_halves()
        except OSError as error:
            raise InputError(_not_writable(path, error)) from None
        directory._lay_ballast()
        return directory

    def _remove_halves(self) -> None:
        """Remove what a killed process left half written: a partial last line, partial Parquet parts."""
        for path in (*self.path.glob("*.jsonl"), *self.path.glob("trace.json")):
            require_regular(path)
            with path.open("rb+") as file:
                file.truncate(_end_of_last_line(file))
        drop_unplaced(self.path)
        for path in (p for pattern in ("*.tmp", "*/part-*.tmp", "*/.part-*.tmp") for p in self.path.glob(pattern)):
            path.unlink(missing_ok=True)

    def lines(self, name: str) -> int:
        """How many lines a .jsonl file has; 0 when there is none."""
        path = self.path / name
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def sync(self) -> Records:
        """Sync the lines and parts written so far to the disk. Returns their extent."""
        with self._adding:  # counted first: data added meanwhile is not covered
            records = Records(files={name: self._grown(name).extent() for name in CHAINED if self._is_there(name)})
            parts, self._unsynced = self._unsynced, set()
        for path in (*self.path.glob("*.jsonl"), *parts):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return records

    def write_json(self, name: str, value: Any) -> Path:
        """Write a whole JSON file, atomically."""
        path = self.write_text(name, json_text(value, indent=2) + "\n")
        if name == CONFIG:
            self.config = value
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole file, atomically."""
        path = self.path / name

        def write() -> None:
            if path.parent != self.path:  # a run directory that was removed is not created again
                path.parent.mkdir(exist_ok=True)
            _write_whole(path, text)

        self._guard(write)
        return path

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one line to a .jsonl file."""
        self.append_bytes(name, json_text(record).encode() + b"\n")

    def append_all(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Append a line for each record, all of them or none."""
        if lines := b"".join(json_text(record).encode() + b"\n" for record in records):
            self.append_bytes(name, lines)

    def append_bytes(self, name: str, lines: bytes) -> None:
        """Append whole lines to a file, all of them or none."""
        with self._adding:
            self._guard(lambda: self._add(name, lines))

    def _add(self, name: str, lines: bytes) -> None:
        running = self._grown(name) if name in CHAINED else None
        _append(self.path / name, lines)
        if running is not None:
            running.add(lines)

    def _grown(self, name: str) -> Running:
        """The extent of a file: its length at the start plus the data added by this process."""
        if name not in self._running:
            running, path = Running(name), self.path / name
            if path.exists():
                running.add(path.read_bytes())
            self._running[name] = running
        return self._running[name]

    def _is_there(self, name: str) -> bool:
        return name in self._running or (self.path / name).exists()

    def write_rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Write rows as the next Parquet part of `rollouts` or `labels`."""
        if not rows:
            return None
        columns = arrow_table(table, rows)
        folder = self.path / table
        if table not in self._parts:  # a folder that already has parts continues after the last one
            taken = [int(part.stem.removeprefix("part-")) for part in folder.glob("part-*.parquet")]
            self._parts[table] = max(taken, default=-1) + 1
        number = self._parts[table]
        path = folder / f"part-{number:06d}.parquet"

        def write() -> None:
            folder.mkdir(exist_ok=True)
            self._place(path, columns)
            # Here, and not after the guard: that raises when only the second attempt found room.
            self._parts[table] = number + 1

        self._guard(write)
        return path

    def replace_rows(self, path: Path, table: Any) -> None:
        """Replace a part by one with the same rows and more values filled in; a `pyarrow.Table`."""
        self._guard(lambda: self._place(path, table))

    def _place(self, path: Path, table: Any) -> None:
        import pyarrow.parquet as pq

        with _appearing(path) as scratch:
            pq.write_table(table, scratch)
            if self.keeps_part_digests:
                line = part_line(f"{path.parent.name}/{path.name}", scratch, rows=table.num_rows)
                with self._adding:
                    self._add(PARTS, json_text(line).encode() + b"\n")
        self._unsynced.add(path)

    def lock(self) -> None:
        """Lock the folder until this process ends in any way. Raises InputError when another process works here."""
        self._unlock = weakref.finalize(self, os.close, lock_directory(self.path))

    def close(self) -> None:
        """Release the ballast and the lock; everything must be written before."""
        self.ballast.give_up()
        self._unlock()

    def _lay_ballast(self) -> None:
        try:
            self.ballast.lay(BALLAST_BYTES)
        except OSError as error:
            self.close()
            with suppress(OSError):  # it is not empty
                self.path.rmdir()  # or the same --name would be taken at the next attempt
            if not is_no_space(error):
                raise InputError(_not_writable(self.path, error)) from None
            raise InputError(
                f"run directory {self.path}: {error.strerror}; expected at least {BALLAST_BYTES >> 20} MiB free, "
                "free some space or run elsewhere"
            ) from None

    @property
    def is_gone(self) -> bool:
        """It was removed or moved; another folder of the same name may be in its place."""
        return not (self.path / CONFIG if self.config else self.path).exists()

    def require_here(self) -> None:
        """Raises UnwritableError when the folder is gone."""
        if self.is_gone:
            raise self._unwritable(FileNotFoundError())

    def explained(self, error: Exception) -> Exception:
        """An error about a file in this folder in plain words; any other error unchanged."""
        if isinstance(error, OSError) and Path(str(error.filename or "")).is_relative_to(self.path):
            return self._unwritable(error)
        return error

    def put_back(self, summary: Any) -> None:
        """After the folder was removed: create it again, with the files that describe the run and its end. Raises
        OSError when its parent folder is gone too."""
        self.path.mkdir(exist_ok=True)
        for name, value in ((CONFIG, self.config), ("summary.json", summary)):
            _write_whole(self.path / name, json_text(value, indent=2) + "\n")

    def _guard(self, write: Callable[[], None]) -> None:
        """Write; when the disk is full, release the ballast, write once more, and report that the disk is full."""
        if self.config:
            self.require_here()
        try:
            write()
            return
        except OSError as error:
            if not is_no_space(error):
                raise self._unwritable(error) from error
        had_ballast = self.ballast.give_up()
        try:
            write()
        except OSError as error:
            if not is_no_space(error):
                raise self._unwritable(error) from error
            raise DiskFullError(
                f"the disk of {self.path} is full and the last rows could not be written; free some space"
            ) from None
        if had_ballast:
            raise DiskFullError(
                f"the disk of {self.path} is full; everything generated so far was written, and the run was "
                "stopped; free some space and start again with --resume",
                is_written=True,
            )

    def _unwritable(self, error: OSError) -> UnwritableError:
        if self.is_gone:
            return UnwritableError(
                f"run directory {self.path} is gone: it was removed or moved while the run used it; what was written "
                "after that is lost"
            )
        return UnwritableError(
            f"run directory {self.path} cannot be written: {error.strerror or error}; make its disk writable again, "
            "then start the same command with --resume"
        )


def _not_writable(path: Path, error: OSError) -> str:
    if isinstance(error, IsADirectoryError) or error.errno == errno.EINVAL:
        return f"{error.filename} is no regular file, expected one of the run's records; move it away"
    return (
        f"run directory {path} cannot be written: {error.strerror or error}; make it writable, or run elsewhere "
        "(SOLON_RUNS)"
    )


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A scratch file that is renamed into place when complete, and removed when it cannot be completed."""
    # Hidden: readers of all parts of a folder ignore it.
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    with _appearing(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _end_of_last_line(file: BinaryIO) -> int:
    """Where the last whole line of a file ends."""
    position = file.seek(0, os.SEEK_END)
    while position:
        start = max(0, position - 65536)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def _append(path: Path, lines: bytes) -> None:
    rest = memoryview(lines)
    # Unbuffered: a buffer would be flushed again when the file is closed, after a second attempt.
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(start)  # no partial line, so that a second attempt does not follow one
            raise
