"""A checkpoint of a running run: everybody's part of one moment between two steps, put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from actors.calls import open_box, put_in_box
from solon.async_ledger import AsyncLedger
from solon.checkpoint_store import upload
from solon.checkpoints import Checkpoint, CheckpointFolder
from solon.errors import PayloadLostError, RunFailedError
from solon.guarded import GuardedLearner
from solon.held import Held
from solon.recorder import Recorder


class Saver:
    """`await saver.save(step)` after step - 1 was committed and before step is trained."""

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        learner: GuardedLearner,
        ledger: AsyncLedger,
        recorder: Recorder,
        config_hash: str,
        url: str,
        state: Callable[[], Awaitable[Mapping[str, Any]]],
        spared: Callable[[], list[int]] = list,
    ) -> None:
        """state: what else of the run is to be kept. spared: steps whose checkpoint must not be retired."""
        self._folder = folder
        self._learner = learner
        self._ledger = ledger
        self._recorder = recorder
        self._config_hash = config_hash
        self._url = url
        self._state = state
        self._spared = spared
        self.saved_at: int | None = None
        """The step of the last checkpoint."""

    async def save(self, step: int) -> None:
        """Raises RunFailedError, OSError when it cannot be written; an upload that fails is told and tried again with
        the next one."""
        began = time.monotonic()
        cut, boxes = await self._ledger.cut()
        scratch = self._folder.begin(step)
        await self._learner.save(str(scratch.resolve()))
        held, lost = await asyncio.to_thread(open_held, boxes)
        state = await self._state()
        # What the checkpoint says was trained must be on record before the checkpoint is there.
        await asyncio.to_thread(self._recorder.sync)
        path = await asyncio.to_thread(
            self._folder.finish,
            scratch,
            step=step,
            config_hash=self._config_hash,
            ledger=cut.without(lost),
            held=held,
            run=state,
            spared=self._spared(),
        )
        self._learner.saved(str(path.resolve()))
        self.saved_at = step
        self._recorder.event("checkpoint", step=step, held=len(held), seconds=round(time.monotonic() - began, 3))
        if self._url:
            await self._upload(path)

    async def _upload(self, path: Path) -> None:
        try:
            await asyncio.to_thread(upload, path, self._url)
        except RunFailedError as error:
            self._recorder.event("upload_failed", checkpoint=path.name, cause=str(error))


def open_held(boxes: Mapping[int, tuple[Any, Any]]) -> tuple[list[Held], set[int]]:
    """The groups in boxes, and the ordinals of those that are lost."""
    held: list[Held] = []
    lost = set()
    for ordinal, (generation, feedback) in boxes.items():
        try:
            held.append((open_box(generation), None if feedback is None else open_box(feedback)))
        except PayloadLostError:
            lost.add(ordinal)
    return held, lost


def restore_ledger(ledger: AsyncLedger, checkpoint: Checkpoint, *, judges_again: bool = False) -> None:
    """Put what a checkpoint holds into a new ledger; the engines are about to hold the checkpoint's weights.

    judges_again: the labels that it holds are another judge's, so that what was written is judged again.
    """
    payloads = {
        ordinal: (put_in_box(group), None if feedback is None or judges_again else put_in_box(feedback))
        for ordinal, (group, feedback) in checkpoint.held.items()
    }
    ledger.restore(checkpoint.ledger, payloads, version=checkpoint.step)
