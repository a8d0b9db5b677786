"""Seconds of work that may be interrupted and continued, by this process or a later one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT_S = 2.0
"""How much of the time a killed process may lose."""


class Stopwatch:
    """`with running(path) as watch: work(); watch.seconds`"""

    def __init__(self, path: Path) -> None:
        self._path, self._before, self._started = path, 0.0, time.monotonic()
        with suppress(OSError, ValueError):
            self._before = max(0.0, float(path.read_text(encoding="utf-8")))

    @property
    def seconds(self) -> float:
        """Of this process and of earlier ones that were interrupted."""
        return self._before + time.monotonic() - self._started

    def write(self) -> None:
        """Keep the time for a process that continues the work. A time that cannot be written is lost."""
        with suppress(OSError):
            self._path.write_text(f"{self.seconds:.3f}", encoding="utf-8")


@contextmanager
def running(path: Path) -> Iterator[Stopwatch]:
    """A stopwatch that continues from the file, where one is; the file is removed when the work ends well."""
    watch, ended = Stopwatch(path), threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            watch.write()

    thread = threading.Thread(target=beat, name="solon-stopwatch", daemon=True)
    thread.start()
    try:
        yield watch
    except BaseException:
        ended.set()
        thread.join()
        watch.write()
        raise
    ended.set()
    thread.join()
    path.unlink(missing_ok=True)
