"""Writes the summary when a run ends, even when its folder or Ray is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from solon.errors import RunFailedError
from solon.runs.directory import RunDirectory


class FinalSummary:
    """The summary of one run, early or final. Call `begin()` within the task that drives it."""

    def __init__(self, directory: RunDirectory, *, end: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """end: the `end` entry of the summary: the cause, the remedy, the command that resumes the run."""
        self._directory = directory
        self._end = end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._written: str | None = None
        self.ray_failure: RunFailedError | None = None
        """Why the run cannot continue, when Ray itself is gone."""

    def begin(self) -> None:
        """Remember the task to end. Raises an earlier failure."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.ray_failure is not None:
            raise self.ray_failure

    def in_the_loop(self, call: Callable[[], object]) -> None:
        """Callable from another thread: runs in the loop while the loop exists."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it was closed
                self._loop.call_soon_threadsafe(call)

    def ray_lost(self, error: RunFailedError, *, steps: int, note: Callable[[str], None]) -> None:
        """Callable from another thread: writes a short summary at once, since Ray's own code may end this process at
        any moment; then cancels the task that drives the run, which writes the full one."""
        if self._written is not None:
            return  # the run has ended, and its summary says how
        self.ray_failure = error
        with suppress(Exception):  # the folder may be gone as well
            self._directory.write_json("summary.json", self._short(error, steps=steps))
        self.in_the_loop(lambda: self._cancel(note))

    def cut_short(self) -> None:
        """End the task that drives the run, unless it has reached its summary. Call it in the loop."""
        if self._task is not None and self._written is None:
            self._task.cancel()

    def write(self, summary: dict[str, Any]) -> RunFailedError | None:
        """Write `summary.json`. Returns the error when it cannot be written; the summary then has it as `unwritten`."""
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
        """The cause, and the command that resumes the run; empty when the run had already ended in order."""
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
