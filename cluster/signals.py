"""How a person or a scheduler ends a run."""

from __future__ import annotations

import asyncio
import signal


class Signals:
    """Ctrl-C and SIGTERM end the run after the step in hand; a second one, or one before training, at once."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self.interrupted = False
        self.may_finish = False
        """Training has begun: there is a step in hand."""

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _on_signal(self) -> None:
        if (self.interrupted or not self.may_finish) and self._task is not None:
            self._task.cancel()
        self.interrupted = True
        self._stop.set()
