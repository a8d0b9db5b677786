"""Watches Ray from a thread of the driver, so that Ray's failure ends a run in order.

    with RayWatch(driver, probe=probe_of(address)) as watch:
        try:
            asyncio.run(driver.drive())
        except Exception as error:
            watch.leave_if_gone(error, show=...)
            raise

Measured on Ray 2.60: after its raylet is killed, a driver that fetches from the object store is ended by Ray's C++ code
within seconds; after its control service is killed, within 60 s; both without an exception, a summary or a line on the
terminal. An agent takes the raylet down with it. So the thread watches these processes itself. It has a summary written
at once, asks the driver to end, and ends the process when that takes too long: any call into Ray may hang by then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from actors.calls import RAY_IS_GONE
from cluster.ray_session.processes import RayProcess, ray_processes
from solon.errors import RunFailedError
from solon.host.processes import descendants, wait_for_the_end

LOOK_EVERY_S = 0.2
FIND_EVERY_S = 10.0
"""Agents start after the raylet, and a little after the cluster answers."""
END_S = 5.0
"""How long a driver may take to end in order when Ray is gone. Ray's own code ends the process 5 s after the death
of an agent at the earliest."""
PROBE_EVERY_S = 5.0
SILENT_S = 40.0
"""A control service on another machine may be restarted; Ray's own code gives it 60 s, and then ends the process."""


class Watched(Protocol):
    """A driver."""

    def ray_lost(self, error: RunFailedError) -> None:
        """Called from the thread: record at once that the run failed and why, then end it."""
        ...

    def helper_lost(self, what: str, cause: str) -> None:
        """Called from the thread: a Ray process that the run does not need has ended."""
        ...

    def final_message(self, error: Exception) -> str:
        """The final message: the cause, and the command that resumes the run. Empty: the run had already ended in
        order, and only its process is left."""
        ...


class RayWatch:
    """`with RayWatch(driver): ...` within an open cluster."""

    def __init__(
        self,
        driver: Watched,
        *,
        probe: Callable[[], bool] | None = None,
        processes: Callable[[], list[RayProcess]] = ray_processes,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        """probe: whether the control service of a joined cluster answers; may block."""
        self._driver = driver
        self._probe = probe
        self._find = processes
        self._exit = leave
        self._known: dict[int, RayProcess] = {}
        self._told: set[int] = set()
        self._stop = threading.Event()
        self._leaving = threading.Lock()
        self._silent_since: float | None = None
        self.failure: RunFailedError | None = None
        """Why the run cannot continue, when Ray is gone."""

    def __enter__(self) -> RayWatch:
        RAY_IS_GONE.clear()
        self._look_for_processes()
        threading.Thread(target=self._watch, name="solon-ray-watch", daemon=True).start()
        if self._probe is not None:
            threading.Thread(target=self._listen, name="solon-ray-probe", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def leave_if_gone(self, error: Exception) -> None:
        """When Ray is gone: report why, end the rest of Ray and this process. Ray's own shutdown would wait for dead
        processes. Returns otherwise."""
        if self.failure is not None:
            self._leave(error)

    # -- the threads ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        found_at = time.monotonic()
        while not self._stop.wait(LOOK_EVERY_S):
            if time.monotonic() - found_at > FIND_EVERY_S:
                found_at = time.monotonic()
                self._look_for_processes()
            for one in sorted(self._known.values(), key=lambda one: "agent" not in one.what):
                if one.process.pid not in self._told and (how := one.ended()) is not None:
                    self._told.add(one.process.pid)
                    self._ended(one, how)
            if self.failure is not None:
                break
        if self.failure is not None and not self._stop.wait(END_S):
            self._leave(self.failure)

    def _ended(self, one: RayProcess, how: str) -> None:
        cause = f"{one.what} (pid {one.process.pid}) {how}"
        if not one.is_needed:
            self._driver.helper_lost(one.what, cause)
        elif self.failure is None:
            self._lost(f"{cause}, and a run cannot continue without it")

    def _lost(self, cause: str) -> None:
        RAY_IS_GONE.set()
        self.failure = RunFailedError(
            f"{cause}; unless it was ended on purpose, look for the out-of-memory killer: "
            "dmesg -T | grep -i 'killed process'"
        )
        self._driver.ray_lost(self.failure)

    def _listen(self) -> None:
        assert self._probe is not None
        while not self._stop.wait(PROBE_EVERY_S) and self.failure is None:
            began = time.monotonic()
            if self._probe():
                self._silent_since = None
                continue
            self._silent_since = self._silent_since or began
            silent_s = time.monotonic() - self._silent_since
            if silent_s > SILENT_S:
                self._lost(f"Ray's control service (GCS) has not answered for {silent_s:.0f} s")

    def _look_for_processes(self) -> None:
        for one in self._find():
            self._known.setdefault(one.process.pid, one)

    def _leave(self, error: Exception) -> None:
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # another thread is already ending the process
        end_processes([one for one in self._known.values() if one.child is not None])
        told = self._driver.final_message(error)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            if told:
                print(told, file=sys.stderr, flush=True)
        self._exit(1 if told else 0)


def end_processes(processes: list[RayProcess], *, patience_s: float = 2.0) -> None:
    """End the rest of a cluster that was started here, and the workers that its raylet started."""
    left = [*(one.process for one in processes), *descendants([one.process.pid for one in processes])]
    for process in left:
        process.send(signal.SIGTERM)
    for process in wait_for_the_end(left, timeout_s=patience_s):
        process.send(signal.SIGKILL)
