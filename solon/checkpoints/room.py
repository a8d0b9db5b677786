"""Disk space for the next checkpoint: reserved in advance, released when it is written, then reserved again.

Between two checkpoints the ballast of the run directory is slightly larger than the last checkpoint. So a disk that
fills up is noticed a whole interval before the next checkpoint, and a run that stops because its disk is full has room
for its last checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

from solon.checkpoints.folder import CheckpointFolder
from solon.host.ballast import is_no_space
from solon.runs import directory as run_directory
from solon.runs.directory import DiskFullError, RunDirectory

MARGIN_BYTES = 2**20
"""Margin beyond 5 %: a checkpoint also holds the groups in progress, whose number varies."""


class CheckpointRoom:
    """`room.begin()`, write, `room.end(step)`; `room.give_up(...)` when the disk turns out to be full.

    `emit(name, **fields)` is called when the disk has no room for the next one.
    """

    def __init__(self, directory: RunDirectory, folder: CheckpointFolder, *, emit: Callable[..., None]) -> None:
        self._directory = directory
        self._folder = folder
        self._emit = emit
        self._is_short = False
        steps = folder.steps()
        self.size = folder.size(steps[-1]) if steps else 0
        """Bytes of the last checkpoint; 0: there is none yet."""

    @property
    def missing(self) -> int:
        """Bytes that must be freed before a checkpoint as large as the last one fits."""
        return max(0, self.size - shutil.disk_usage(self._directory.path).free)

    def begin(self) -> None:
        """A checkpoint is about to be written: release the reserved space."""
        if self._directory.ballast.nbytes > run_directory.BALLAST_BYTES:
            self._directory.ballast.lay(run_directory.BALLAST_BYTES)

    def give_up(self, step: int, spared: Sequence[int]) -> bool:
        """Free the next thing that can be spared for the checkpoint of this step: the ballast, then the oldest
        checkpoint, but never the last one nor those in `spared`. False: nothing is left to free."""
        if self._directory.ballast.give_up():
            return True
        steps = [one for one in self._folder.steps()[:-1] if one not in spared and one != step]
        if not steps:
            return False
        kept = {*self._folder.steps()} - {steps[0]}
        self._folder.retire(keep=1, spared=kept)
        self._emit("space_freed", step=step, removed=steps[0])
        return True

    def end(self, step: int) -> None:
        """The checkpoint is in place: reserve space again. Raises DiskFullError when not even the last rows would
        fit."""
        self.size = self._folder.size(step)
        ballast = self._directory.ballast
        try:
            if not ballast.nbytes:  # given up for this checkpoint
                ballast.lay(run_directory.BALLAST_BYTES)
        except OSError as error:
            if not is_no_space(error):
                raise
            raise DiskFullError(
                f"the disk of {self._directory.path} is full; the checkpoint of step {step} took the last space, and "
                "the run was stopped; free some space and start again with --resume",
                is_written=True,
            ) from None
        try:
            ballast.lay(run_directory.BALLAST_BYTES + self.size + self.size // 20 + MARGIN_BYTES)
        except OSError as error:
            if is_no_space(error):
                self._say_short()
                return
            # A file system that cannot reserve space: only the present free space is known.
            if self.missing:
                self._say_short()
                return
        self._is_short = False

    def full(self, *, written: int, resume: str, who: str = "") -> DiskFullError:
        """The error of a run whose checkpoint does not fit. written: bytes of it that were written; who: the rank whose
        part did not fit, where there are several."""
        free = shutil.disk_usage(self._directory.path).free
        wanted = max(self.size, written)
        needs = f"about {_mib(wanted)}" if self.size >= written else f"more than {_mib(wanted)}"
        steps = self._folder.steps()
        kept = f"the one of step {steps[-1]} is whole" if steps else "there is none before it"
        of = f" for {who}" if who else ""
        return DiskFullError(
            f"the disk of {self._directory.path} is full{of}: a checkpoint needs {needs}, {_mib(free)} are free; "
            f"{kept}; free at least {_mib(max(wanted - free, MARGIN_BYTES))}, then: {resume}"
        )

    def _say_short(self) -> None:
        if not self._is_short:
            missing = max(self.missing, 0)
            cause = f"a checkpoint takes {_mib(self.size)}, {_mib(missing)} are missing for the next one"
            self._emit("space_short", checkpoint_bytes=self.size, missing_bytes=missing, cause=cause)
        self._is_short = True


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
