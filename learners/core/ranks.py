"""The processes that train one network together, and the few numbers that they exchange outside of forward passes.

Every rank holds the whole batch and computes the same targets from it. Forward and backward passes are divided: a
microbatch belongs to one rank. Gradients are summed over the ranks, and every loss is divided by a denominator of the
whole minibatch, so the number of ranks does not change the mathematics.

N response tokens of a batch, W ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from solon.errors import WorkerLostError

ItemT = TypeVar("ItemT")

FACTORS = (1.0, 1.1, 1.25, 1.5, 2.0)
"""Limits that are tried for microbatches, over a rank's equal share of the tokens: rectangles fill none exactly."""

Turn = tuple[int, bool]
"""The place of an item among those of all ranks, and whether its result counts."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together. `Ranks()` is a process that trains alone."""

    rank: int = 0
    size: int = 1
    mesh: Any = field(default=None, repr=False, compare=False)
    """The device mesh over which networks are sharded; None: alone."""
    beside: Any = field(default=None, repr=False, compare=False)
    """A mesh of the same ranks on CPUs, for what runs at the same time as a step; None: alone."""

    @property
    def is_first(self) -> bool:
        """The rank that publishes and reports."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def turns(self, costs: Sequence[float]) -> list[Turn]:
        """This rank's share of some items. Every rank gets the same number, since a forward pass is a collective
        operation; one that has fewer repeats the cheapest item without counting it."""
        return deal(costs, self.size)[self.rank]

    def joined(self, values_N: Tensor) -> Tensor:
        """Values of which each rank has some and 0 elsewhere, complete on every rank."""
        if not self.is_alone:
            dist.all_reduce(values_N)
        return values_N

    def each(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, in the order of the ranks; float64."""
        if self.is_alone:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64, device=self.mesh.device_type)
        gathered = torch.empty(self.size * len(values), dtype=torch.float64, device=mine.device)
        dist.all_gather_single(gathered, mine)
        found: list[list[float]] = gathered.view(self.size, -1).tolist()
        return found

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, added in the order of the ranks, so that all hold the same bits."""
        return [sum(column) for column in zip(*self.each(values), strict=True)]

    def shared(self, value: Any, *, beside: bool = False) -> Any:
        """What the first rank has, on every rank. beside: at the same time as a step."""
        if self.is_alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self._group(beside))
        return box[0]

    def say(self, number: int, *, beside: bool = False) -> None:
        """Tell the other ranks, which must be listening, a number."""
        if not self.is_alone:
            dist.broadcast(torch.tensor(number, device=self._device(beside)), 0, group=self._group(beside))

    def heard(self, *, beside: bool = False) -> int:
        """The number that the first rank says next."""
        number = torch.zeros((), dtype=torch.int64, device=self._device(beside))
        dist.broadcast(number, 0, group=self._group(beside))
        return int(number)

    def _group(self, beside: bool) -> Any:
        return self.beside.get_group() if beside else None

    def _device(self, beside: bool) -> str:
        return "cpu" if beside else str(self.mesh.device_type)

    def require_same(self, values: Mapping[str, bytes]) -> None:
        """Raises RankFailedError that names a value, and a rank whose value differs from that of most ranks."""
        if self.is_alone:
            return
        # 48 bits of each digest fit a float64 exactly.
        mine = [float(int.from_bytes(hashlib.sha256(value).digest()[:6], "big")) for value in values.values()]
        columns = list(zip(*self.each(mine), strict=True))
        for name, column in zip(values, columns, strict=True):
            # With a tie, as between two ranks, the first rank is believed.
            usual = max(dict.fromkeys(column), key=column.count)
            if odd := [rank for rank, value in enumerate(column) if value != usual]:
                raise RankFailedError(
                    f"rank {', '.join(map(str, odd))} of {self.size} differs from the others in {name}, expected equal "
                    "values on all ranks: its memory or its inputs are damaged"
                )


class RankFailedError(WorkerLostError):
    """A rank computes or holds other values than the rest: all ranks are replaced."""


ALONE = Ranks()


def deal(costs: Sequence[float], ranks: int) -> list[list[Turn]]:
    """The turns of every rank: the costliest item goes first, each to the rank with the least work so far.

    >>> deal([5, 1, 1, 4], 2)
    [[(0, True), (1, True)], [(3, True), (2, True)]]
    >>> deal([3], 2)
    [[(0, True)], [(0, False)]]
    """
    work, turns = [0.0] * ranks, [list[Turn]() for _ in range(ranks)]
    for place in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        least = min(range(ranks), key=lambda rank: (work[rank], rank))
        turns[least].append((place, True))
        work[least] += costs[place]
    rounds = max(map(len, turns))
    if costs:
        cheapest = min(range(len(costs)), key=lambda n: (costs[n], n))
        for some in turns:
            some += [(cheapest, False)] * (rounds - len(some))
    return turns


def divided(
    make: Callable[[int], list[ItemT]], cost: Callable[[ItemT], float], *, most: int, total: int, ranks: int
) -> list[ItemT]:
    """Microbatches that the ranks finish soonest: `make(limit)` with the best limit up to `most` tokens. Their number
    bounds memory and does not change a result. total: tokens of them all."""
    if ranks == 1:
        return make(most)
    fair = -(-total // ranks)
    found = [make(limit) for limit in sorted({max(1, min(most, int(fair * factor))) for factor in FACTORS})]
    return min(found, key=lambda some: _slowest([cost(one) for one in some], ranks))


def _slowest(costs: Sequence[float], ranks: int) -> float:
    """The work of the busiest rank, repeated items included."""
    return max((sum(costs[place] for place, _ in turns) for turns in deal(costs, ranks)), default=0.0)


def store_at(host: str, port: int, size: int, *, timeout_s: float = 60.0) -> Any:
    """The store at which ranks meet: a new one for port 0, whose `port` the others are told. Raises RuntimeError when
    there is none in time."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, size, is_master=port == 0, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )


def join_ranks(rank: int, size: int, *, store: Any, device: str = "cpu", timeout_s: float = 600.0) -> Ranks:
    """Meet the other processes at a store, such as a `torch.distributed.TCPStore`, and form one group with them.

    device: `cuda` exchanges gradients by NCCL, `cpu` by gloo. timeout_s: how long a rank waits for the others in one
    operation. Raises RuntimeError when they do not come in time.
    """
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    if size == 1:
        return ALONE
    backend = "nccl" if device == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    beside = DeviceMesh.from_group(dist.new_group(backend="gloo", timeout=timeout), "cpu")
    return Ranks(rank, size, init_device_mesh(device, (size,)), beside)


def leave_ranks() -> None:
    """End the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
