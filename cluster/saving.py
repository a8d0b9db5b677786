"""A checkpoint of a running run: everybody's part of one moment between two steps, put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from actors.calls import open_payload, put_payload
from solon.checkpoints.folder import Checkpoint, CheckpointFolder, folder_bytes
from solon.checkpoints.held_groups import Held
from solon.checkpoints.remote import upload
from solon.checkpoints.room import CheckpointRoom
from solon.errors import PayloadLostError, RunFailedError
from solon.host.ballast import is_no_space
from solon.ledger.async_ledger import AsyncLedger
from solon.recovery.supervised_lanes import SupervisedLearner
from solon.runs.directory import RunDirectory, UnwritableError
from solon.telemetry.recorder import Recorder


class Saver:
    """`await saver.save(step)` after step - 1 was committed and before step is trained."""

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
    ) -> None:
        """state: what else of the run is to be kept. spared: steps whose checkpoint must not be retired. resume: what
        is typed to go on when the disk was full."""
        self._folder = folder
        self._learner = learner
        self._ledger = ledger
        self._recorder = recorder
        self._config_hash = config_hash
        self._url = url
        self._state = state
        self._spared = spared
        self._resume = resume
        self._room = CheckpointRoom(directory, folder, emit=recorder.event)
        self._written = 0
        self.saved_at: int | None = None
        """The step of the last checkpoint."""

    async def save(self, step: int, *, is_last: bool = False) -> None:
        """Raises DiskFullError when the disk cannot hold it, whatever is given up for it; the checkpoint before stays.
        Raises RunFailedError when it cannot be written. An upload that fails is told and tried again with the next."""
        began = time.monotonic()
        path, held = await self._fit(step)
        self._learner.saved(str(path.resolve()))
        self.saved_at = step
        self._recorder.event("checkpoint", step=step, held=held, seconds=round(time.monotonic() - began, 3))
        if not is_last:
            self._room.end(step)
        if self._url:
            await self._upload(path)

    async def _fit(self, step: int) -> tuple[Path, int]:
        """The checkpoint in its place, and how many groups it holds. What can be spared is given up for it, in turn."""
        self._room.begin()
        written = 0
        while True:
            if not self._room.missing:
                try:
                    return await self._write(step)
                except Exception as error:
                    if not is_no_space(error):
                        raise self._told(error) from error
                    written = max(written, self._written)
            if not self._room.give_up(step, self._spared()):
                raise self._room.full(written=written, resume=self._resume)

    async def _write(self, step: int) -> tuple[Path, int]:
        """One try. What it leaves behind is removed, so that its space is free; `_written` says how much it was."""
        scratch = self._folder.begin(step)
        try:
            cut, payload_refs = await self._ledger.cut()
            await self._learner.save(str(scratch.resolve()))
            held, lost = await asyncio.to_thread(open_held, payload_refs)
            state = await self._state()
            # What the checkpoint says was trained must be on record before the checkpoint is there.
            records = await asyncio.to_thread(self._recorder.sync)
            path = await asyncio.to_thread(
                self._folder.finish,
                scratch,
                step=step,
                config_hash=self._config_hash,
                ledger=cut.without(lost),
                held=held,
                run=state,
                records=records,
                spared=self._spared(),
            )
        finally:
            self._written = folder_bytes(scratch)
            self._folder.discard(scratch)
        return path, len(held)

    @staticmethod
    def _told(error: Exception) -> Exception:
        """What the disk refuses for another reason than space, as one message."""
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
    """Put what a checkpoint holds into a new ledger; the engines are about to hold the checkpoint's weights.

    judges_again: the labels that it holds are another judge's, so that what was written is judged again.
    """
    payloads = {
        ordinal: (put_payload(group), None if feedback is None or judges_again else put_payload(feedback))
        for ordinal, (group, feedback) in checkpoint.held.items()
    }
    ledger.restore(checkpoint.ledger, payloads, version=checkpoint.step)
