"""How a person, a scheduler or a lost terminal ends a run."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def ending_signals() -> tuple[signal.Signals, ...]:
    """Signals that ask a run to end. SIGHUP, of a terminal that is gone, is one, unless whoever started the process had
    it ignored, as `nohup` does."""
    always = (signal.SIGINT, signal.SIGTERM)
    return always if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*always, signal.SIGHUP)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, until `Signals` takes all three over.

    Gives what has to be called after `ray.init`, which takes SIGTERM for itself: it would end the process with 15 and
    without a word. Until then SIGHUP is blocked, which processes that are started meanwhile inherit: a lost terminal
    would otherwise end Ray's together with this one. Does nothing outside the main thread, where Python allows no
    handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    numbers = [number for number in ending_signals() if number is not signal.SIGINT]
    before = {number: signal.getsignal(number) for number in numbers}
    hangup = {signal.SIGHUP} & set(numbers)

    def take() -> None:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)

    def take_again() -> None:
        take()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hangup)

    take()
    signal.pthread_sigmask(signal.SIG_BLOCK, hangup)
    try:
        yield take_again
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hangup)


TOGETHER_S = 5.0
"""A terminal that closes sends SIGHUP, and its shell sends it again; a scheduler may send SIGTERM to a process and to
its group. Within so many seconds that is one request. Ctrl-C counts every time: a person presses it."""


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP end the run after the step under way; a second one, or one before training, at
    once."""

    def __init__(self, stop: asyncio.Event, *, tell: Callable[[str], None] = lambda text: None) -> None:
        """tell: says to a person that the signal arrived, as a step may take minutes."""
        self._stop = stop
        self._emit = tell
        self.interrupted = False
        self.received = ""
        """Name of the first one."""
        self.may_finish = False
        """Training has begun: there is a step to finish."""
        self._last_s = float("-inf")

    def __enter__(self) -> Signals:
        self._task = asyncio.current_task()
        self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
        self._numbers = ending_signals()
        self._loop = asyncio.get_running_loop()
        for number in self._numbers:
            self._loop.add_signal_handler(number, self._on_signal, number)
        if signal.SIGHUP in self._numbers:
            signal.signal(signal.SIGHUP, self._on_hangup)  # at once: the loop may be about to write to the terminal
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._numbers:
            self._loop.remove_signal_handler(number)

    def _on_hangup(self, *_: object) -> None:
        """A terminal that is gone refuses what is written to it, and the run has things to say until it ends. The loop
        hears of the signal by itself."""
        for number in self._terminals:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)

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
        now, self.received = self._loop.time(), self.received or signal.Signals(number).name
        if number != signal.SIGINT and now - self._last_s < TOGETHER_S:
            return
        self._last_s = now
        if self.may_finish and not self.interrupted:
            self._emit(f"asked to stop ({self.received}): the current step is finished and saved first")
        if (self.interrupted or not self.may_finish) and self._task is not None:
            self._task.cancel()
        self.interrupted = True
        self._stop.set()
