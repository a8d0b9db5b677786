"""Writes a user's file atomically."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from solon.errors import InputError


def write_whole(path: str | Path, text: str, *, what: str) -> Path:
    """Write a text file by rename, creating its folder. Raises InputError; `what` names the file in the message."""
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
        raise InputError(f"{what} {path} cannot be written: {error}; free space or choose another path") from None
    return path
