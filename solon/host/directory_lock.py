"""Locks on directories for one process at a time; they end with their process in every case.

with locked(run_directory): ...                                  # the folder itself
with held(folder, user="another import", remedy="wait"): ...     # a file in it, which names the process
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


LOCK = ".lock"
"""Of a folder that `held` makes."""
TRIES, TRY_S = 3, 0.1
"""`require_unused` takes the lock for a moment."""


@contextmanager
def held(folder: Path, *, user: str, remedy: str) -> Iterator[None]:
    """Make a folder and hold it in a with block. user: who else may hold it, and remedy, for the message. Raises
    InputError when another process holds it, or it cannot be made or locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}; choose another place") from None
    try:
        for _ in range(TRIES - 1):
            with suppress(InputError):
                _take(descriptor, folder, user, remedy)
                break
            time.sleep(TRY_S)
        else:
            _take(descriptor, folder, user, remedy)
        os.ftruncate(descriptor, 0)
        with suppress(OSError):  # a full disk: the lock is held, only its number is missing
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def require_unused(folder: Path, *, user: str, remedy: str) -> None:
    """Raises InputError when another process holds a folder by `held`. Writes nothing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no process has held it yet, or `held` says why it cannot
        return
    try:
        _take(descriptor, folder, user, remedy)
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path, user: str, remedy: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise InputError(
                f"{folder} cannot be locked: {error.strerror}; choose a place on a file system that has locks"
            ) from None
        number = os.pread(descriptor, 32, 0).decode(errors="replace")
        process = f" (process {number})" if number.isdigit() else ""
        raise InputError(f"{user} is using {folder}{process}; {remedy}") from None
