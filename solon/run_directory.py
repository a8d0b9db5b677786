"""The folder of a run: what is written when, and how nothing written is ever lost.

Whole files appear by rename; JSON lines and Parquet parts are only ever added. A ballast file is given up when
the disk is full, so that what was already generated can still be written and the run can say what happened.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from solon.errors import InputError, RunFailedError

BALLAST_BYTES = 16 * 2**20


class DiskFullError(RunFailedError):
    """No space is left for the run directory."""


class RunDirectory:
    """`RunDirectory.create("runs", "demo")`; the name gets a number when it is taken and was not asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: dict[str, int] = {}

    @classmethod
    def create(cls, root: str | Path, name: str | None, *, default: str) -> RunDirectory:
        """A new folder. Raises InputError when the name is taken or cannot be a folder name."""
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
            raise InputError(f"--name got {name!r}, expected letters, digits, '.', '_' and '-'")
        chosen = name or time.strftime(f"{default}-%Y%m%d-%H%M%S")
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
                raise InputError(f"run directory {path} cannot be made: {error}; free space or go elsewhere") from None
            directory = cls(path)
            directory._lay_ballast()
            return directory
        raise InputError(f"run directory {Path(root) / chosen} exists already; choose another --name")

    def write_json(self, name: str, value: Any) -> Path:
        """A whole JSON file, there completely or not at all."""
        path = self.path / name
        self._guard(lambda: _write_whole(path, json.dumps(value, indent=2, default=str) + "\n"))
        return path

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """One line of a .jsonl file."""
        line = json.dumps(record, default=str) + "\n"
        self._guard(lambda: _append(self.path / name, line))

    def write_rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Rows as the next Parquet part of `rollouts` or `labels`."""
        if not rows:
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = self._parts.get(table, 0)
        path = self.path / table / f"part-{number:06d}.parquet"

        def write() -> None:
            path.parent.mkdir(exist_ok=True)
            scratch = path.with_suffix(".tmp")
            pq.write_table(pa.Table.from_pylist(cast("list[dict[str, Any]]", list(rows))), scratch)
            scratch.replace(path)

        self._guard(write)
        self._parts[table] = number + 1
        return path

    def close(self) -> None:
        """Give the ballast back."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.path / ".ballast"

    def _lay_ballast(self) -> None:
        try:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError as error:
            self._ballast.unlink(missing_ok=True)
            raise InputError(
                f"run directory {self.path}: {error.strerror}; expected at least {BALLAST_BYTES >> 20} MiB free, "
                "free some space or run elsewhere"
            ) from None

    def _guard(self, write: Any) -> None:
        """Write; when the disk is full, give up the ballast, write once more, and report that it is full."""
        try:
            write()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            had_ballast = self._ballast.exists()
            self.close()
            try:
                write()
            except OSError:
                raise DiskFullError(
                    f"the disk of {self.path} is full and the last rows could not be written; free some space"
                ) from None
            if had_ballast:
                raise DiskFullError(
                    f"the disk of {self.path} is full; everything generated so far was written, and the run was "
                    "stopped; free some space and start again"
                ) from None


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _append(path: Path, line: str) -> None:
    data = line.encode()
    with path.open("ab") as file:
        start = file.tell()
        try:
            file.write(data)
            file.flush()
        except OSError:
            file.truncate(start)  # no half line, so that a second try does not follow one
            raise
