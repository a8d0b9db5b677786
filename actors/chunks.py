"""Chunks of weights in Ray's object store.

The learner yields them from a generator task, so the driver that called it owns them: they stay on the learner's node
when its process ends, until no one refers to their version. Every engine on a node reads the same copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import ray

from actors.calls import open_payload
from solon.errors import PayloadLostError
from solon.records import Chunk

FETCH_TIMEOUT_S = 240.0
"""Upper bound for fetching all chunks from another node."""


class StoredChunks(Sequence[Chunk]):
    """Opens each chunk on access: read-only views of shared memory, which stay mapped as long as one of them lives."""

    def __init__(self, references: Sequence[ray.ObjectRef]) -> None:
        self._references = list(references)

    @overload
    def __getitem__(self, number: int) -> Chunk: ...
    @overload
    def __getitem__(self, number: slice) -> StoredChunks: ...
    def __getitem__(self, number: int | slice) -> Chunk | StoredChunks:
        """Raises PayloadLostError."""
        if isinstance(number, slice):
            return StoredChunks(self._references[number])
        chunk: Chunk = open_payload([self._references[number]])
        return chunk

    def __len__(self) -> int:
        return len(self._references)

    def fetch(self) -> None:
        """Returns when every chunk is on this node or known to be lost. Raises PayloadLostError when neither is so in
        time."""
        if not self._references:
            return
        ready, missing = ray.wait(self._references, num_returns=len(self._references), timeout=FETCH_TIMEOUT_S)
        if missing:
            raise PayloadLostError(f"{len(missing)} of {len(ready) + len(missing)} chunks of weights did not arrive")
