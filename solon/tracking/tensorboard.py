"""TensorBoard: event files in a directory. `tensorboard --logdir DIR` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardSink:
    """Raises ImportError without the package `tensorboard`."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._session, self._summary = Event, SessionLog, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))

    def settings(self, config: Mapping[str, Any]) -> None:
        """TensorBoard shows curves; the settings are in the run."""

    def step(self, step: int, values: Mapping[str, float], *, time_s: float) -> None:
        """A point of every curve."""
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time_s, step=step, summary=self._summary(value=points)))

    def back_to(self, step: int) -> None:
        """TensorBoard forgets points from this step on."""
        log = self._session(status=self._session.START)
        self._writer.add_event(self._event(step=step, session_log=log))

    def ended(self, status: str, values: Mapping[str, float]) -> None:
        """The figures of the summary, as points at step 0 under `summary/`."""
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(step=0, summary=self._summary(value=points)))
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
