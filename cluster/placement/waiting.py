"""Reports, while a run starts, which of its actors have no node yet and how the cluster grows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import ray

from cluster.placement.placement import Demand, table
from cluster.placement.supply import Growth, read_growth, read_supply
from solon.errors import RunFailedError

FIRST_S = 2.0
"""Seconds before the first line: an actor whose node exists is placed within them."""
EVERY_S = 12.0
"""Seconds between two lines: nodes take minutes."""


class Waiting:
    """Actors without a node. `report` runs while all of them start."""

    def __init__(
        self,
        demands: Sequence[Demand],
        *,
        say: Callable[[str], None],
        emit: Callable[..., None],
        look: Callable[[], Growth] = read_growth,
    ) -> None:
        """say: receives text. tell: receives events of the run. look: reads the cluster; it may block."""
        self._demands = demands
        self._without = {demand.name: demand for demand in demands}
        self._names = frozenset(self._without)
        self._say = say
        self._emit = emit
        self._look = look

    def placed(self, name: str) -> None:
        """This actor has a node."""
        self._without.pop(name, None)

    async def report(self, *, first_s: float = FIRST_S, every_s: float = EVERY_S) -> None:
        """Writes a line every few seconds while an actor has no node, and one event."""
        pause_s, told = first_s, False
        while self._without:
            await asyncio.sleep(pause_s)
            pause_s = every_s
            growth = await self._growth()
            # With nothing pending, the actors have nodes and their processes are starting.
            if growth is None or not growth.pending or not self._without:
                continue
            if not told:
                told = True
                self._emit("waiting_for_nodes", workers=sorted(self._without), asks=self._asks())
            self._say(self.line(growth))

    def line(self, growth: Growth) -> str:
        """The actors that are waited for, and how far the cluster has grown."""
        parts = [f"waiting for {len(self._without)} of {len(self._names)} actors: {self._asks()}"]
        parts.append(f"nodes: {_counts(growth.nodes)}{''.join(f', {text}' for text in growth.free)}")
        if growth.starting:
            parts.append(f"starting: {_counts(growth.starting)}")
        if growth.failed:
            parts.append(f"not started: {', '.join(growth.failed)}")
        return "; ".join(parts)

    async def failure(self, limit_s: float, *, setting: str = "recovery.node_timeout_s = ") -> RunFailedError:
        """The error for a run whose actors found no node in time, with a table as its note. setting: of the limit."""
        growth = await self._growth()
        supply = await asyncio.to_thread(read_supply)
        failed = f" (not started: {', '.join(growth.failed)})" if growth is not None and growth.failed else ""
        error = RunFailedError(
            f"no place for {', '.join(sorted(self._without))} within {setting}{limit_s:g} s{failed}; "
            "see with `ray status` what has the nodes, or why none starts; then ask for less, or raise it"
        )
        error.add_note(table(self._demands, supply))
        return error

    def _asks(self) -> str:
        alike: dict[str, list[str]] = {}
        for name, demand in self._without.items():
            each = f" on each of {demand.num_nodes} nodes" if demand.num_nodes > 1 else ""
            alike.setdefault((demand.asks or "nothing") + each, []).append(name)
        return "; ".join(
            f"{', '.join(names)} {'ask' if len(names) > 1 else 'asks'} {asks}" for asks, names in alike.items()
        )

    async def _growth(self) -> Growth | None:
        try:
            return await asyncio.to_thread(self._look)
        except ray.exceptions.RayError:  # a busy head answers the next request
            return None


def _counts(nodes: Mapping[str, int] | Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(nodes.items()))
