"""The log of a job, line by line, until the job has ended; and how it ended.

A tail may end early: it is taken up again where it was lost, until the job's own status says that it has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.submission.connection import UnreachableError
from solon.errors import InputError, RunFailedError
from solon.files.plain_text import excerpt, visible
from solon.redaction import redacted

AGAIN_S = 1.0
"""Between two tails."""
SILENT_S = 120.0
"""How long a cluster may be silent while its job is followed: a head restarts, a tunnel is opened again."""
PENDING_EVERY_S = 30.0
LONGEST_LINE = 100_000
"""Characters of a line that are held until its end."""


class Source(Protocol):
    """A job server."""

    def job(self, name: str) -> Any:
        """None: the cluster does not know the job."""
        ...

    def log(self, name: str) -> str: ...

    def tail(self, name: str) -> Any:
        """An asynchronous iterator over text."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a job ended."""

    status: str
    """`SUCCEEDED`, `STOPPED` or `FAILED`."""
    code: int
    """Of `solon`: 0, 1 or 2."""
    said: str
    """In words."""

    @classmethod
    def of(cls, name: str, info: Any) -> Ended:
        """From the cluster's record of a job that has ended."""
        status, left = str(info.status.value), info.driver_exit_code
        if status == "SUCCEEDED":
            return cls(status=status, code=0, said=f"{name} succeeded")
        if status == "STOPPED":
            return cls(status=status, code=0, said=f"{name} was stopped on request")
        if left is not None:
            how = f"exit code {left}" if 0 < left < 128 else f"killed by signal {left - 128 if left > 0 else -left}"
            return cls(status=status, code=2 if left == 2 else 1, said=f"{name} failed ({how})")
        return cls(status=status, code=1, said=f"{name} failed: {_cause(info)}")


class Follower:
    """`ended = await Follower(server, "solon-night-1", write=print, say=note).run()`"""

    def __init__(
        self,
        source: Source,
        name: str,
        *,
        write: Callable[[str], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        pause_s: float = AGAIN_S,
        silent_s: float = SILENT_S,
    ) -> None:
        """write: receives each harmless line of the log. say: receives notes. silent_s: seconds without an answer after
        which it gives up."""
        self._source, self._name, self._write, self._say = source, name, write, say
        self._clock, self._pause_s, self._silent_s = clock, pause_s, silent_s
        self._seen = 0
        """Characters of the log so far."""
        self._part = ""
        """Of a line."""
        self._was_known = False
        self._silent_since: float | None = None
        self._told_pending_s = float("-inf")

    async def run(self) -> Ended:
        """Returns when the job has ended. Raises RunFailedError when the cluster lost it or stays silent, InputError
        for a job that it never knew."""
        while True:
            try:
                info = await asyncio.to_thread(self._source.job, self._name)
                if info is None:
                    raise self._vanished()
                self._was_known, self._silent_since = True, None
                if info.status.is_terminal():
                    self._rest(await asyncio.to_thread(self._source.log, self._name))
                    return Ended.of(self._name, info)
                self._pending(info)
                await self._tail()
            except UnreachableError as error:
                self._silence(error)
            await asyncio.sleep(self._pause_s)

    async def _tail(self) -> None:
        """Writes what is new until the tail ends."""
        position = 0
        async for text in self._source.tail(self._name):
            fresh = text[max(0, self._seen - position) :]
            position += len(text)
            self._seen = max(self._seen, position)
            self._lines(fresh)

    def _rest(self, log: str) -> None:
        """Writes what the tails did not deliver."""
        self._lines(log[self._seen :])
        self._seen = max(self._seen, len(log))
        if self._part:
            self._write(harmless(self._part))
            self._part = ""

    def _lines(self, text: str) -> None:
        *whole, self._part = (self._part + text).split("\n")
        for line in whole:
            self._write(harmless(line))
        if len(self._part) > LONGEST_LINE:
            self._write(harmless(self._part))
            self._part = ""

    def _pending(self, info: Any) -> None:
        """A note, every half minute, while the driver has no node."""
        if info.status.value == "PENDING" and self._clock() - self._told_pending_s >= PENDING_EVERY_S:
            if self._told_pending_s > float("-inf"):
                self._say(f"{self._name} waits for a machine for its driver, or for its folder to be unpacked there")
            self._told_pending_s = self._clock()

    def _silence(self, error: UnreachableError) -> None:
        now = self._clock()
        if self._silent_since is None:
            self._silent_since = now
            self._say(f"{error}; trying again for {self._silent_s:.0f} s")
        elif now - self._silent_since > self._silent_s:
            raise RunFailedError(f"{error}; {self._name} may still run") from None

    def _vanished(self) -> Exception:
        if not self._was_known:
            return InputError(f"the cluster knows no job {self._name}; see with `solon jobs list` which there are")
        return RunFailedError(
            f"{self._name} has vanished: the cluster answers, but no longer knows the job, so it was restarted or the "
            "job was deleted"
        )


def harmless(line: str) -> str:
    """A line of a log for a terminal: no control characters, no secrets."""
    return visible(redacted(line.rstrip("\r")))


def _cause(info: Any) -> str:
    """Why a job failed that has no exit code."""
    message = str(info.message or "no cause is recorded")
    kind = str(info.error_type or "")
    first = excerpt(next((line for line in message.splitlines() if line.strip()), message), longest=300)
    if "START_TIMEOUT" in kind or "failed to start within" in message:
        return (
            f"no machine for its driver within Ray's limit ({first}); see with `ray status` what has the machines, or "
            "why none starts, and submit again"
        )
    if "RUNTIME_ENV" in kind:
        return f"its folder could not be unpacked on the cluster: {excerpt(message, longest=400)}"
    if "DIED" in kind or "died" in first:
        return f"the machine or the process of its driver was lost: {first}"
    return first
