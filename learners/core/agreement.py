"""Which rank is to blame when ranks disagree: about values that all should hold, about a number that is not finite, or
about weights that changed between two steps.

A sum over ranks hides its culprit: one that is not finite on one rank is not finite on all of them afterwards. So the
ranks compare what each of them found before it was summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learners.core.ranks import RankFailedError, Ranks
from learners.core.sharding import layers_of, local
from solon.errors import InputError


class Agreement:
    """The checks of one rank. Alone, it checks nothing."""

    def __init__(self, ranks: Ranks, networks: Sequence[nn.Module], weights: Sequence[Tensor]) -> None:
        """weights: those that train, of which this rank keeps a part."""
        self._ranks, self._networks, self._weights = ranks, networks, weights
        self._sums: list[int] | None = None
        """Of the weights that this rank keeps, after the last step."""
        self._gradients: list[Tensor] = []
        """Whether each gradient that reached the first layer in the present pass is finite."""
        if not ranks.is_alone:
            for network in networks:
                _first_layer(network).register_forward_hook(self._watch)

    def require(self, values: Mapping[str, object]) -> None:
        """Raises RankFailedError that names a rank whose value or buffer differs from that of the others, or whose
        weights changed since `record`."""
        if self._ranks.is_alone:
            return
        digests = {name: repr(value).encode() for name, value in values.items()}
        for network in self._networks:
            for name, buffer in _kept_buffers(network):
                digests[f"the buffer {name}"] = buffer.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        self._ranks.require_same(digests)
        same = self._sums is None or self._sums == self._checksums()
        if odd := [rank for rank, (ok,) in enumerate(self._ranks.each([float(same)])) if not ok]:
            raise RankFailedError(
                f"the weights on {named(odd, self._ranks)} changed between two steps, expected the ones that the last "
                "step left: its memory is damaged"
            )

    def record(self) -> None:
        """Remember the present weights, for the next `require`."""
        if not self._ranks.is_alone:
            self._sums = self._checksums()

    def forget(self) -> None:
        """The weights were set from outside."""
        self._sums = None

    def gradients_are_finite(self) -> bool:
        """Whether all gradients of the passes since the last call were finite on this rank, before they were summed."""
        flags, self._gradients = self._gradients, []
        return all(bool(flag) for flag in flags)

    def _checksums(self) -> list[int]:
        """Sums of the bits of every trained weight that this rank keeps."""
        found = []
        for weight in self._weights:
            mine = local(weight.detach()).contiguous().view(-1)
            found.append(
                int(mine.view(torch.int32 if mine.element_size() == 4 else torch.uint8).sum(dtype=torch.int64))
            )
        return found

    def _watch(self, _: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(self._look)  # type: ignore[no-untyped-call]

    def _look(self, gradient: Tensor) -> None:
        self._gradients.append(torch.isfinite(gradient).all())


def _kept_buffers(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that belong to the model's files. Others may follow from the rows that a rank computes, as some rotary
    frequencies do."""
    for prefix, module in network.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def blame(ranks: Ranks, wrong: int, again: Callable[[int], bool]) -> None:
    """Raises RankFailedError when what was not finite on one rank is finite on another: the rank, not the batch, is at
    fault. wrong: the first microbatch that was not finite on this rank; -1: there was none. again: computes a
    microbatch, on all ranks together, and returns whether it is finite."""
    if ranks.is_alone:
        return
    places = [int(place) for (place,) in ranks.each([float(wrong)])]
    if not 0 < sum(place >= 0 for place in places) < ranks.size:
        return
    guilty = next(rank for rank, place in enumerate(places) if place >= 0)
    found = ranks.each([float(again(places[guilty]))])
    if any(ok for rank, (ok,) in enumerate(found) if rank != guilty):
        raise RankFailedError(
            f"rank {guilty} of {ranks.size} computed a number that is not finite from a microbatch of which "
            "another rank computed a finite one: its device or its memory is damaged"
        )


def named(some: Sequence[int], ranks: Ranks) -> str:
    """`rank 1 of 2`"""
    return f"rank {', '.join(map(str, some))} of {ranks.size}"


def _first_layer(network: nn.Module) -> nn.Module:
    try:
        return next(iter(layers_of(network)), network)
    except InputError:
        return network
