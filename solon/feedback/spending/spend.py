"""Money spent, stored on disk: a restarted job continues under the same cap.

The file always contains at least the money spent, even after a crash: spending is recorded before a call is allowed,
somewhat ahead, so that not every call waits for the disk. A clean end writes the exact figure; after a crash up to one
hundredth of the cap may count as spent although it was not.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path
from typing import IO

from solon.errors import InputError

SCHEMA = "solon.spend/v1"
NANO = 1_000_000_000
"""Money is counted in whole billionths of a dollar: sums of floats drift, and a cap must not."""


def nano(usd: float) -> int:
    """Dollars as whole billionths, rounded up.

    >>> nano(0.0000000001), nano(2.5)
    (1, 2500000000)
    """
    return math.ceil(round(usd * NANO, 3))


class SpendFile:
    """`SpendFile(path)`; one process at a time. Raises InputError when the file cannot be read or is in use."""

    def __init__(self, path: str | Path, *, ahead: int) -> None:
        """`ahead`: nano-dollars recorded in advance."""
        self.path = Path(path)
        self._ahead = max(ahead, 1)
        self._lock: IO[bytes] | None = _locked(self.path)
        try:
            self.spent = self._read()
        except BaseException:
            self._lock.close()
            raise
        self._written = self.spent

    def cover(self, committed: int, *, cap: int | None) -> None:
        """Make sure that the file records at least `committed`. Call it before the money can be spent."""
        if committed <= self._written:
            return
        ahead = committed + self._ahead
        self._write(ahead if cap is None else max(committed, min(ahead, cap)))

    def close(self, committed: int) -> None:
        """Write the exact figure and release the file."""
        if self._lock is not None:
            self._write(committed)
            self._lock.close()
            self._lock = None

    def _read(self) -> int:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"spend file {self.path} cannot be read: {error}; fix it or name another one") from None
        try:
            value = json.loads(text)
            usd = value["spent_usd"]
            is_known = value["schema"] == SCHEMA and type(usd) in (int, float) and 0 <= usd < 1e9
        except (ValueError, KeyError, TypeError):
            is_known = False
        if not is_known:
            raise InputError(
                f"spend file {self.path} was not written by Solon, expected {{schema: {SCHEMA}, spent_usd: number}}; "
                "write the amount spent into it, or name another file"
            )
        return nano(usd)

    def _write(self, spent: int) -> None:
        # Replaced by rename: a crash leaves the old or the new file, never a partial one.
        scratch = self.path.with_name(self.path.name + ".tmp")
        with scratch.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"schema": SCHEMA, "spent_usd": spent / NANO}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.path)
        self._written = spent


def spent_usd(path: str | Path) -> float:
    """The amount in a spend file; 0 when there is none yet. Raises InputError as `SpendFile` does."""
    if not Path(path).exists():
        return 0.0
    file = SpendFile(path, ahead=1)
    file.close(file.spent)
    return file.spent / NANO


def _locked(path: Path) -> IO[bytes]:
    """A lock beside the file, which ends with its process."""
    beside = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = beside.open("ab")
    except OSError as error:
        raise InputError(f"spend file {path} cannot be made: {error}; name a place that can be written") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        is_taken = isinstance(error, BlockingIOError)
        reason = "is in use by another job" if is_taken else f"cannot be locked: {error}"
        raise InputError(f"spend file {path} {reason}; two jobs cannot share a cap; name another file") from None
    return file
