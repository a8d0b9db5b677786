"""How a person or a scheduler ends a run."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[Callable[[], None]]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does, until `Signals` takes both over.

    Gives what has to be called after `ray.init`, which takes SIGTERM for itself: it would end the process with 15 and
    without a word. Does nothing outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)

    def take() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    take()
    try:
        yield take
    finally:
        signal.signal(signal.SIGTERM, before)


class Signals:
    """Ctrl-C and SIGTERM end the run after the step in hand; a second one, or one before training, at once."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self.interrupted = False
        self.received = ""
        """Name of the first one."""
        self.may_finish = False
        """Training has begun: there is a step in hand."""

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def said(self, *, at_once: bool = False) -> str:
        """What was asked for, for people. at_once: the step that was being trained was not finished."""
        if not at_once:
            return f"it was asked to stop ({self.received})"
        if not self.may_finish:
            return f"it was asked to stop ({self.received}) before training began, and nothing was lost"
        return (
            f"it was asked twice to stop ({self.received}) and ended at once; what was trained since the last "
            "checkpoint is trained again"
        )

    def _on_signal(self, number: signal.Signals) -> None:
        self.received = self.received or signal.Signals(number).name
        if (self.interrupted or not self.may_finish) and self._task is not None:
            self._task.cancel()
        self.interrupted = True
        self._stop.set()
