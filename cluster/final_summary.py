"""What is written of a run when it ends, also when its folder is gone, or Ray is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from solon.errors import RunFailedError
from solon.runs.directory import RunDirectory


class FinalSummary:
    """The summary of one run, early or late. `begin()` within the task that drives it."""

    def __init__(self, directory: RunDirectory, *, end: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """end: what a summary's `end` says: the cause, what to do, the command that resumes the run."""
        self._directory = directory
        self._end = end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._written: str | None = None
        self.ray_failure: RunFailedError | None = None
        """Why the run cannot continue, when Ray itself is gone."""

    def begin(self) -> None:
        """Remember what has to be ended. Raises what happened before."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.ray_failure is not None:
            raise self.ray_failure

    def in_the_loop(self, call: Callable[[], object]) -> None:
        """From another thread: call it in the loop, as long as there is one."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it was closed
                self._loop.call_soon_threadsafe(call)

    def ray_lost(self, error: RunFailedError, *, steps: int, note: Callable[[str], None]) -> None:
        """From another thread: a short summary is written at once, since Ray's own code may end this process at any
        moment; then the task that drives the run is cancelled, and writes a better one."""
        if self._written is not None:
            return  # the run has ended, and its summary says how
        self.ray_failure = error
        with suppress(Exception):  # the folder may be gone as well
            self._directory.write_json("summary.json", self._short(error, steps=steps))
        self.in_the_loop(lambda: self._cancel(note))

    def cut_short(self) -> None:
        """End the task that drives the run, unless it has come to its summary. Call it in the loop."""
        if self._task is not None and self._written is None:
            self._task.cancel()

    def write(self, summary: dict[str, Any]) -> RunFailedError | None:
        """Write `summary.json`. Returns why it could not be written; the summary has it as `unwritten` then."""
        self._written = str(summary["status"])
        try:
            self._directory.ballast.give_up()
            self._directory.write_json("summary.json", summary)
            return None
        except (OSError, RunFailedError) as error:
            if self._directory.is_gone and isinstance(error, RunFailedError):
                with suppress(OSError):
                    self._directory.put_back(summary)
                    return error
            summary["unwritten"] = str(error)
            return RunFailedError(f"summary.json cannot be written: {error}; the run ended as {summary['status']}")

    def final_message(self, error: Exception) -> str:
        """The cause, and the command that resumes the run; empty when the run had ended in good order before."""
        if self._written in ("completed", "stopped"):
            return ""
        resume = self._end(self._short(error, steps=0)).get("resume")
        return "\n".join([f"solon: the run failed: {error}", *([f"resume: {resume}"] if resume else [])])

    def _short(self, error: Exception, *, steps: int) -> dict[str, Any]:
        short = {"status": "failed", "steps": steps, "failure": f"{type(error).__name__}: {error}"}
        return {**short, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "end": self._end(short)}

    def _cancel(self, note: Callable[[str], None]) -> None:
        note(f"the run ends: {self.ray_failure}")
        self.cut_short()
