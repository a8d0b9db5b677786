"""The model that copies are rounded from: the original, or a pruned copy of it that was trained after the pruning."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from compression.live import LiveModel
from compression.original import Original
from compression.pairs import Pair, Scores
from compression.pruning.plan import Pruning


class Start:
    """`Start(original, Path("model"), Pruning(channels=0.25), place=..., make=...).path`

    make: writes the pruned model, given its place; called once, as what is finished is kept.
    """

    def __init__(
        self, original: Original, model: Path, pruning: Pruning, *, place: Path, make: Callable[[Path], None]
    ) -> None:
        self._original, self._model, self._pruning, self._place, self._make = original, model, pruning, place, make

    @cached_property
    def path(self) -> Path:
        """A model directory."""
        if not self._pruning.is_any:
            return self._model
        if not self._place.exists():
            scratch = self._place.with_name(f".{self._place.name}")
            shutil.rmtree(scratch, ignore_errors=True)
            self._make(scratch)
            scratch.rename(self._place)
        return self._place

    @cached_property
    def live(self) -> LiveModel:
        """In memory, with units that change their formats."""
        return LiveModel.load(self.path) if self._pruning.is_any else self._original.live

    @cached_property
    def searched(self) -> Scores:
        """Of the pairs of the sweeps."""
        if not self._pruning.is_any:
            return self._original.searched
        return self._original.rules.scores(self.live.model, self.search)

    @property
    def search(self) -> Sequence[Pair]:
        """The pairs of the sweeps."""
        return self._original.search
