"""Disk space that a run reserves until it is needed: for the last rows, and for the next checkpoint.

Blocks are really allocated, so other writers cannot take them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = ".ballast"
EMULATED_BYTES = 64 * 2**20
"""Up to this size, a file system that cannot allocate is filled by writing; more would take minutes."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Ballast:
    """`ballast.lay(n)`, `ballast.give_up()`; the file `.ballast` of a run directory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    @property
    def nbytes(self) -> int:
        """Bytes reserved now; 0 after `give_up`."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def lay(self, nbytes: int) -> None:
        """Reserve `nbytes`, more or less than now. Raises OSError and keeps the present reservation when there is no
        room; with EOPNOTSUPP if the file system cannot allocate."""
        before = self.nbytes
        with self._path.open("ab") as file:
            try:
                if nbytes > before:
                    _allocate(file.fileno(), nbytes)
                file.truncate(nbytes)
            except OSError:
                file.truncate(before)
                raise

    def give_up(self) -> bool:
        """Free the reservation. False: there was none."""
        had = self.nbytes > 0
        with suppress(OSError):  # if the disk is read-only or gone, another write reports it
            self._path.unlink(missing_ok=True)
        return had


def is_no_space(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk or quota, of this process or of a worker, whose library may report it
    only as text."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        text = str(error)
        if any(os.strerror(code) in text or f"os error {code})" in text for code in NO_SPACE):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises OSError where safetensors could not write: its own error, which derives from Exception, has the number
    only as text."""
    try:
        yield
    except Exception as error:
        code = re.search(r"os error (\d+)\)", str(error))
        if type(error).__name__ != "SafetensorError" or code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _allocate(descriptor: int, nbytes: int) -> None:
    if nbytes <= EMULATED_BYTES:
        os.posix_fallocate(descriptor, 0, nbytes)
        return
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(descriptor, 0, 0, nbytes):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
