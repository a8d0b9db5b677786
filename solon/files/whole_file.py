"""Writes a user's file atomically."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from solon.errors import InputError, RunFailedError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: str | Path, text: str, *, what: str) -> Path:
    """Write a text file by rename, creating its folder. Raises InputError for a path that cannot be written, and
    RunFailedError for a full disk; `what` names the file in the message."""
    path = Path(path)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        kind = RunFailedError if error.errno in FULL else InputError
        raise kind(f"{what} {path} cannot be written: {error}; free space or choose another path") from None
    return path
