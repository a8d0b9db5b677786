"""Checkpoints of a running run: the state of every part between two steps, put together."""

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
        """state: other state of the run to keep. spared: steps whose checkpoint must not be retired. resume: the
        command to continue after a full disk."""
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
        """Raises DiskFullError when the disk cannot hold it even after freeing space; the previous checkpoint stays.
        Raises RunFailedError when it cannot be written. A failed upload is reported and tried again with the next."""
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
        """The written checkpoint, and how many groups it holds. On a full disk, spare files are removed in turn."""
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
        """One attempt. Its leftovers are removed, so that their space is free; `_written` says how much it was."""
        scratch = self._folder.begin(step)
        try:
            cut, payload_refs = await self._ledger.cut()
            await self._learner.save(str(scratch.resolve()))
            held, lost = await asyncio.to_thread(open_held, payload_refs)
            state = await self._state()
            # Steps that the checkpoint counts as trained must be on record before the checkpoint exists.
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
