"""Standard input, output and errors in any condition: a reader that left, a dropped terminal, none at all.

The loss of its terminal does not end a command: a run of hours has its results in files.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import IO, Any

READER_GONE = (errno.EPIPE, errno.EIO)
"""A closed pipe, and a dropped terminal."""


class PatientFile(io.FileIO):
    """A descriptor that accepts every write. Without a reader it becomes /dev/null; other failures are kept."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes. Without a reader they are dropped; another failure is kept in `failure`."""
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in READER_GONE:
                self.failure = self.failure or error
            become_nothing(self.fileno(), os.O_WRONLY)
            return len(memoryview(data).cast("B"))


def settle_streams() -> None:
    """Makes the standard streams safe to use; only for the entry point of a program.

    A closed descriptor is opened on /dev/null: otherwise the next file would get its number, and with it the output of
    libraries. Characters that the encoding of the output lacks are replaced.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is the closed one
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _patient(sys.stdout, 1)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _patient(sys.stderr, 2)


def lost_output() -> OSError | None:
    """Why output could not be written, apart from a lost reader."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):
            stream.flush()
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, PatientFile) and raw.failure is not None:
            return raw.failure
    return None


def become_nothing(number: int, flags: int) -> None:
    """Redirect a descriptor to /dev/null."""
    nothing = os.open(os.devnull, flags)
    try:
        os.dup2(nothing, number)
    finally:
        os.close(nothing)


def _patient(stream: IO[str] | None, number: int) -> io.TextIOWrapper:
    """Another stream on the same descriptor."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # "?" keeps the width of drawings; characters that UTF-8 cannot encode are halves of characters in a file's name.
    errors = "replace" if number == 1 and not encoding.lower().startswith("utf") else "backslashreplace"
    raw = PatientFile(number, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors=errors,
        line_buffering=number == 2 or raw.isatty(),
        write_through=bool(getattr(stream, "write_through", False)),
    )
