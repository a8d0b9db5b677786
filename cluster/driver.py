"""Runs the stages of a run in turn within one session, and records how the run ended in every case."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cluster.final_summary import FinalSummary
from cluster.report import report_at_end
from cluster.session import RunSession
from cluster.summary import summarise
from solon.doctor.ending import ending
from solon.errors import RunFailedError


class Runnable(Protocol):
    """A stage."""

    async def run(self, session: RunSession) -> bool:
        """Whether the work was done; False: the run was stopped first."""
        ...


class Driver:
    """One run in the driver's process. `summary = await Driver(session, stages).drive()`"""

    def __init__(self, session: RunSession, stages: Sequence[Runnable]) -> None:
        self._session = session
        self._stages = stages
        self._final = FinalSummary(session.directory, end=self._end_of)
        self._is_ending = False
        """The stages have ended: records and workers are being closed."""

    async def drive(self) -> dict[str, Any]:
        """Run to the end; the summary is written and shown in every case."""
        session, status = self._session, "failed"
        failure: Exception | None = None
        self._final.begin()
        session.open_records(on_failure=self._recording_failed)
        try:
            async with session:
                try:
                    status = await self._run_stages()
                finally:
                    self._is_ending = True
        except asyncio.CancelledError:
            if session.directory.is_gone:
                failure = _raised(session.directory.require_here)
            elif not session.signals.interrupted and self._final.ray_failure is None:
                raise
            else:
                status = "stopped"
                session.stopped_by = {"kind": "interrupted", "message": session.signals.said(at_once=True)}
        except Exception as error:
            # The records may fail after an orderly stop.
            status, failure = "failed", session.directory.explained(error)
        if self._final.ray_failure is not None:  # any other error follows from it
            status, failure = "failed", self._final.ray_failure
        session.totals.end()
        summary = await summarise(session, status, failure)
        summary["end"] = self._end_of(summary)
        unwritten = self._final.write(summary)
        # A directory that was removed, and put back for its summary, has nothing to report.
        if unwritten is None and (problem := await report_at_end(session.directory.path)):
            session.view.note(f"warning: {problem}")
        session.view.ended(summary, session.directory.path)
        # The cause of the end matters more than the missing summary.
        if (cause := failure or unwritten) is not None:
            for note in self._notes(summary["end"]):
                cause.add_note(note)
            raise cause
        return summary

    async def _run_stages(self) -> str:
        await self._session.launch()
        for stage in self._stages:
            if not await stage.run(self._session):
                return "stopped"
        return "completed"

    def _recording_failed(self) -> None:
        """Nothing can be recorded: end after the current step, or at once when the directory is gone. A learner that is
        being replaced would wait there for its checkpoint for ever."""
        self._session.stop.set()
        if self._session.directory.is_gone and not self._is_ending:  # the end waits for nothing that could be cut short
            self._final.cut_short()

    # -- called from the thread that watches Ray (cluster.ray_session.watch) -----------------------------------------

    def ray_lost(self, error: RunFailedError) -> None:
        """Ray is gone: record it at once, and end."""
        self._final.ray_lost(error, steps=self._session.totals.steps, note=self._session.view.note)

    def helper_lost(self, what: str, cause: str) -> None:
        """A Ray process that the run does not need has ended."""
        recorder = self._session.recorder
        self._final.in_the_loop(lambda: recorder.event("ray_helper_lost", worker=what, cause=cause))

    def final_message(self, error: Exception) -> str:
        """The final message of a run whose process cannot end normally."""
        return self._final.final_message(error)

    @property
    def has_begun(self) -> bool:
        """Whether training began: earlier failures leave a resumed run unchanged."""
        return self._session.signals.may_finish

    # -- how it ended --------------------------------------------------------------------------------------------------

    def _notes(self, end: Mapping[str, str | None]) -> list[str]:
        """The remedy for a failure, printed after its cause."""
        if end["resume"]:
            return [f"resume: {end['resume']}"]
        if not self.has_begun and self._session.start.directory is not None:
            return [f"{self._session.directory.path} is as it was before this attempt to resume it"]
        return [f"what to do: {end['remedy']}"] if end["remedy"] else []

    def _end_of(self, summary: Mapping[str, Any]) -> Mapping[str, str | None]:
        directory = self._session.directory
        return ending(summary, directory.config, directory.path.absolute(), has_begun=self.has_begun).as_json()


def _raised(check: Callable[[], None]) -> RunFailedError | None:
    try:
        check()
    except RunFailedError as error:
        return error
    return None
