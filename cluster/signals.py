"""How a user, a scheduler or a lost terminal ends a run."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def ending_signals() -> tuple[signal.Signals, ...]:
    """Signals that ask a run to end. They include SIGHUP, which a closed terminal sends, unless the process was started
    with SIGHUP ignored, as `nohup` does."""
    always = (signal.SIGINT, signal.SIGTERM)
    return always if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*always, signal.SIGHUP)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, until `Signals` takes all three over.

    Yields a function to call after `ray.init`, which takes over SIGTERM: Ray would end the process with code 15 and
    without a message. Until then SIGHUP is blocked, and child processes inherit that: a lost terminal would otherwise
    end Ray together with this process. Does nothing outside the main thread, where Python allows no handlers.
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
"""A closing terminal sends SIGHUP, and its shell sends it again; a scheduler may send SIGTERM to a process and to its
group. Within this many seconds they count as one request. Ctrl-C counts every time: a person presses it."""


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP end the run after the current step; a second one, or one before training, ends it at
    once."""

    def __init__(self, stop: asyncio.Event, *, tell: Callable[[str], None] = lambda text: None) -> None:
        """tell: tells the user that the signal arrived, as a step may take minutes."""
        self._stop = stop
        self._tell = tell
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
        """A closed terminal refuses writes, and the run still writes messages until it ends. The loop receives the
        signal separately."""
        for number in self._terminals:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)

    def said(self, *, at_once: bool = False) -> str:
        """The request in words. at_once: the current step was not finished."""
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
            self._tell(f"asked to stop ({self.received}): the current step is finished and saved first")
        if (self.interrupted or not self.may_finish) and self._task is not None:
            self._task.cancel()
        self.interrupted = True
        self._stop.set()
