"""Checkpoints of a running run: the state of every part between two steps, put together.

The state is taken at one moment while no step runs: the ledger's cut, a copy of the learner, counters, the extent of
the records. It is written while training continues. What is trained meanwhile belongs to the next checkpoint.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from actors.calls import RAY_IS_GONE, open_payload, put_payload
from solon.checkpoints.folder import Checkpoint, CheckpointFolder, folder_bytes
from solon.checkpoints.held_groups import Held
from solon.checkpoints.remote import upload
from solon.checkpoints.room import CheckpointRoom
from solon.errors import PayloadLostError, RunFailedError, WorkerLostError
from solon.host.ballast import is_no_space
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.snapshot import LedgerSnapshot
from solon.recovery.supervised_lanes import SupervisedLearner
from solon.runs.directory import RunDirectory, UnwritableError
from solon.runs.integrity import Records
from solon.telemetry.recorder import Recorder

LAST_S = 300.0
"""Seconds that a run which failed waits for a checkpoint that is being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A run at one moment, without the learner, which keeps its own state of it."""

    step: int
    cut: LedgerSnapshot
    payload_refs: Mapping[int, tuple[Any, Any]]
    state: Mapping[str, Any]
    records: Records
    began: float
    """time.monotonic()"""
    paused_s: float


class Saver:
    """`await saver.save(step)` after step - 1 was committed and before step is trained; within `async with saver`.

    At most one checkpoint is written at a time. An error of writing is raised by the next call.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        directory: RunDirectory,
        learner: SupervisedLearner,
        ledger: AsyncLedger,
        recorder: Recorder,
        config_hash: str,
        url: str,
        state: Callable[[], Awaitable[Mapping[str, Any]]],
        spared: Callable[[], list[int]] = list,
        resume: str = "the same command with --resume",
        is_async: bool = True,
    ) -> None:
        """state: other state of the run to keep. spared: steps whose checkpoint must not be retired. resume: the
        command to continue after a full disk. is_async: `save` returns before the checkpoint is written."""
        self._folder = folder
        self._learner = learner
        self._ledger = ledger
        self._recorder = recorder
        self._config_hash = config_hash
        self._url = url
        self._state = state
        self._spared = spared
        self._resume = resume
        self._is_async = is_async
        self._room = CheckpointRoom(directory, folder, emit=recorder.event)
        self._written = 0
        self._writing: asyncio.Task[None] | None = None
        self.saved_at: int | None = None
        """The step of the last complete checkpoint."""

    async def __aenter__(self) -> Saver:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The end of a run completes the checkpoint in progress, also when the run failed; a run that is cancelled, or
        that has lost Ray, gives it up."""
        writing = self._writing
        if writing is None:
            return
        try:
            if kind is None:
                await self.settled()
            elif issubclass(kind, Exception) and not RAY_IS_GONE.is_set():
                await asyncio.wait({writing}, timeout=LAST_S)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def save(self, step: int, *, is_last: bool = False) -> None:
        """Begin a checkpoint of the present moment. The last one of a run is complete when this returns.

        Raises DiskFullError when the disk cannot hold a checkpoint even after freeing space; the previous one stays.
        Raises RunFailedError when it cannot be written. A failed upload is reported and tried again with the next. If
        the learner is lost meanwhile, its checkpoint is abandoned; the last one is taken again.
        """
        await self.settled()
        if self._is_async and not is_last:
            taken = await self._take(step, copies=True)
            self._writing = asyncio.create_task(self._abandonable(taken))
            return
        while True:
            taken = await self._take(step, copies=False)
            with suppress(WorkerLostError):
                await self._complete(taken, is_last=is_last)
                return

    async def settled(self) -> None:
        """Returns when no checkpoint is being written. Raises the error of the last one, once."""
        if self._writing is not None:
            await asyncio.wait({self._writing})  # a cancelled wait does not end the writing
            self.require_sound()

    def require_sound(self) -> None:
        """Raises the error of a checkpoint that could not be written."""
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()

    async def _take(self, step: int, *, copies: bool) -> Taken:
        """The present moment. No step runs until this returns."""
        began = time.monotonic()
        cut, payload_refs = await self._ledger.cut()
        await self._learner.stage(copies=copies)
        state = copy.deepcopy(await self._state())
        # Steps that the checkpoint counts as trained must be on record before the checkpoint exists.
        records = await asyncio.to_thread(self._recorder.sync)
        return Taken(
            step=step, cut=cut, payload_refs=payload_refs, state=state, records=records, began=began,
            paused_s=time.monotonic() - began,
        )  # fmt: skip

    async def _abandonable(self, taken: Taken) -> None:
        try:
            await self._complete(taken)
        except WorkerLostError as error:
            self._recorder.event("checkpoint_abandoned", step=taken.step, cause=str(error))

    async def _complete(self, taken: Taken, *, is_last: bool = False) -> None:
        """Write it, put it in place, and make room for the next one."""
        step = taken.step
        path, held = await self._fit(taken)
        self._learner.saved(str(path.resolve()))
        self.saved_at = step
        seconds = time.monotonic() - taken.began
        paused_s = taken.paused_s if self._is_async and not is_last else seconds
        self._recorder.event("checkpoint", step=step, held=held, seconds=round(seconds, 3), paused_s=round(paused_s, 3))
        if not is_last:
            self._room.end(step)
        if self._url:
            await self._upload(path)

    async def _fit(self, taken: Taken) -> tuple[Path, int]:
        """The written checkpoint, and how many groups it holds. On a full disk, spare files are removed in turn."""
        self._room.begin()
        written, who = 0, ""
        held, lost = await asyncio.to_thread(open_held, taken.payload_refs)
        while True:
            if not self._room.missing:
                try:
                    return await self._write(taken, held, taken.cut.without(lost)), len(held)
                except Exception as error:
                    if not is_no_space(error):
                        raise self._told(error) from error
                    written, who = max(written, self._written), getattr(error, "who", who)
            if not self._room.give_up(taken.step, self._spared()):
                raise self._room.full(written=written, resume=self._resume, who=who)

    async def _write(self, taken: Taken, held: list[Held], cut: LedgerSnapshot) -> Path:
        """One attempt. Its leftovers are removed, so that their space is free; `_written` says how much it was."""
        scratch = self._folder.begin(taken.step)
        try:
            await self._learner.write(str(scratch.resolve()))
            return await asyncio.to_thread(
                self._folder.finish,
                scratch,
                step=taken.step,
                config_hash=self._config_hash,
                ledger=cut,
                held=held,
                run=taken.state,
                records=taken.records,
                spared=self._spared(),
            )
        finally:
            self._written = folder_bytes(scratch)
            self._folder.discard(scratch)

    @staticmethod
    def _told(error: Exception) -> Exception:
        """A message for a write error other than a full disk."""
        if not isinstance(error, OSError):
            return error
        return UnwritableError(
            f"a checkpoint cannot be written: {error.strerror or error}; make the disk writable again, then start the "
            "same command with --resume: it begins at the last checkpoint that is whole"
        )

    async def _upload(self, path: Path) -> None:
        try:
            await asyncio.to_thread(upload, path, self._url)
        except RunFailedError as error:
            self._recorder.event("upload_failed", checkpoint=path.name, cause=str(error))


def open_held(payload_refs: Mapping[int, tuple[Any, Any]]) -> tuple[list[Held], set[int]]:
    """The groups in boxes, and the ordinals of those that are lost."""
    held: list[Held] = []
    lost = set()
    for ordinal, (generation, feedback) in payload_refs.items():
        try:
            held.append((open_payload(generation), None if feedback is None else open_payload(feedback)))
        except PayloadLostError:
            lost.add(ordinal)
    return held, lost


def restore_ledger(ledger: AsyncLedger, checkpoint: Checkpoint, *, judges_again: bool = False) -> None:
    """Put the contents of a checkpoint into a new ledger; the engines are about to hold the checkpoint's weights.

    judges_again: its labels come from a former judge, so its rollouts are judged again.
    """
    payloads = {
        ordinal: (put_payload(group), None if feedback is None or judges_again else put_payload(feedback))
        for ordinal, (group, feedback) in checkpoint.held.items()
    }
    ledger.restore(checkpoint.ledger, payloads, version=checkpoint.step)
