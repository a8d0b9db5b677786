"""Standard input, output and errors, whatever has become of them: a reader that left, a dropped terminal, none at all.

A command is not ended by the loss of those who read along: a run of hours has its results in files.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import IO, Any

READER_GONE = (errno.EPIPE, errno.EIO)
"""A closed pipe, and a terminal that was dropped."""


class PatientFile(io.FileIO):
    """A descriptor that takes every write. Without a reader it becomes /dev/null; other failures are kept."""

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
    """Makes the standard streams safe to use; for the entry point of a program alone.

    A descriptor that is closed is opened on /dev/null: the next file would get its number, and what libraries print.
    What the encoding of the output lacks is replaced.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _patient(sys.stdout, 1)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _patient(sys.stderr, 2)


def lost_output() -> OSError | None:
    """Why output could not be written, other than that no one reads it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):
            stream.flush()
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, PatientFile) and raw.failure is not None:
            return raw.failure
    return None


def become_nothing(number: int, flags: int) -> None:
    """A descriptor leads to /dev/null from now on."""
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
    # "?" keeps the width of what is drawn; what UTF-8 cannot say is half a character of a file's name.
    errors = "replace" if number == 1 and not encoding.lower().startswith("utf") else "backslashreplace"
    raw = PatientFile(number, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors=errors,
        line_buffering=number == 2 or raw.isatty(),
        write_through=bool(getattr(stream, "write_through", False)),
    )
