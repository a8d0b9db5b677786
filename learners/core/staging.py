"""The state of a learner at one moment, kept in host memory until it is written, while training continues.

    staging = Staging(ranks, copies=True)
    kept = staging.keep(parameter)      # the same tensor later, in host memory
    staging.begin()                     # copies, in a thread
    staging.wait()                      # before a kept tensor changes, and before one is read

Forward and backward passes only read what is kept, so they run while it is copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from learners.core.leading import alone_led
from learners.core.publish import PolicyFiles, Publisher
from learners.core.ranks import Ranks
from learners.core.sharding import local
from learners.core.state import save_state


class Staging:
    """Copies of tensors in host memory. A divided tensor is copied in parts: each rank copies its own."""

    def __init__(self, ranks: Ranks, *, copies: bool) -> None:
        """copies: False: nothing is copied, for a state that is written before any tensor changes."""
        self._ranks, self._copies = ranks, copies
        self._pairs: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._copied: Future[None] | None = None

    def keep(self, tensor: Tensor, *, changes: bool = True) -> Tensor:
        """The tensor as it is now; its contents are there after `wait`. changes: training moves it; one that does not
        change is copied only from a GPU."""
        if not self._copies:
            return tensor.detach()
        source = local(tensor).detach()
        copy = source if not changes and source.device.type == "cpu" else self._copy_of(source)
        if not isinstance(tensor, DTensor):
            return copy
        # On the mesh of checkpoints: whatever is gathered later does not meet the operations of a step.
        return DTensor.from_local(
            copy, self._ranks.beside, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )

    def _copy_of(self, source: Tensor) -> Tensor:
        # The policy's files and the optimiser's state ask for the same weights: they are copied once.
        place = (source.data_ptr(), source.dtype, source.shape, source.stride())
        if place not in self._pairs:
            self._pairs[place] = source, torch.empty_like(source, device="cpu", memory_format=torch.contiguous_format)
        return self._pairs[place][1]

    def begin(self) -> None:
        """Copy what is kept."""
        if self._pairs:
            thread = ThreadPoolExecutor(1, thread_name_prefix="staging")
            device = next(iter(self._pairs.values()))[0].device
            stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream(device))
            self._copied = thread.submit(self._copy, stream)
            thread.shutdown(wait=False)

    def wait(self) -> None:
        """Returns when everything is copied. Raises the error of copying."""
        if self._copied is not None:
            self._copied.result()

    def _copy(self, stream: Any) -> None:
        """stream: of its own, so that copies from a GPU do not wait for the step that is queued there."""
        with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
            for source, copy in self._pairs.values():
                copy.copy_(source)
        if stream is not None:
            stream.synchronize()


@dataclass(frozen=True, slots=True)
class Staged:
    """All that a learner writes into a checkpoint, of one moment."""

    staging: Staging
    tensors: Mapping[str, Tensor]
    """Parameters and moments, by part and name."""
    counters: Mapping[str, float]
    files: PolicyFiles | None
    """None: no policy is published."""

    def write(self, directory: Path, publisher: Publisher | None, ranks: Ranks) -> None:
        """Write it, exact to the bit, as often as is asked. All ranks call it together; an error of one ends it on
        all."""
        self.staging.wait()
        save_state(directory, self.tensors, self.counters, ranks)
        if self.files is not None and publisher is not None:
            publisher.write(self.files, directory / "policy")
            with alone_led(ranks) as leading:
                if leading and self.files.evidence is not None:
                    self.files.evidence.write(directory)
