"""A lock on a run directory for one process at a time; it ends with its process in every case."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from solon.errors import InputError


def lock_directory(folder: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed. Raises InputError when another process holds it, or
    the folder cannot be locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"run directory {folder} cannot be opened: {error.strerror}; check its permissions") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise InputError(
                f"run directory {folder} is in use: another process works in it; wait for it, or end it first"
            ) from None
        raise InputError(
            f"run directory {folder} cannot be locked: {error.strerror}; put runs on a file system that has locks "
            "(SOLON_RUNS)"
        ) from None
    return descriptor


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock in a with block. Raises the errors of `lock_directory`."""
    descriptor = lock_directory(folder)
    try:
        yield
    finally:
        os.close(descriptor)
