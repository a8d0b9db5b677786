"""Whether a cluster can ever hold the actors of a run: their demands against nodes and node types. Pure.

A refusal is always right: it is given only when no placement exists. A placement that may exist is waited for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cluster.config.labels import matches, shown
from cluster.config.run_file import RunFile
from solon.errors import InputError

RESOURCES = ("CPU", "GPU")
"""Resources that actors of a run request."""
ROUNDING = 1e-6
"""In floating point, three times 0.1 CPU is a little more than 0.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The resources that one worker requests on one node: an actor, or the ranks of a learner there."""

    name: str
    section: str
    """Of the run file."""
    cpus: float
    gpus: float
    labels: Mapping[str, str]
    """Its label selector."""
    num_ranks: int = 1
    """Processes that share these resources."""
    num_nodes: int = 1
    """How many of these demands the worker makes, each on a node of its own."""

    @property
    def amounts(self) -> tuple[float, float]:
        """In the order of `RESOURCES`."""
        return self.cpus, self.gpus

    @property
    def asks(self) -> str:
        """`1 CPU, 1 GPU, solon.io/pool=judge`"""
        return ", ".join(part for part in (amounts_shown(self.amounts), shown(self.labels)) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """Nodes that an autoscaler may start."""

    name: str
    resources: Mapping[str, float]
    """Of one node."""
    labels: Mapping[str, str] | None
    """None: not known."""
    at_most: float
    """Nodes of this type, including those that exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that exists."""

    resources: Mapping[str, float]
    """Total resources, used ones included."""
    labels: Mapping[str, str] = field(default_factory=dict)
    type: str = ""
    is_head: bool = False


@dataclass(frozen=True, kw_only=True)
class Supply:
    """What a cluster has, and what it can grow to."""

    nodes: Sequence[Node]
    types: Sequence[NodeType] | None = ()
    """None: it may grow, and its node types are not known. Empty: it does not grow."""
    at_most: float = math.inf
    """Nodes beside the head, of all types together."""

    @property
    def grows(self) -> bool:
        return self.types is None or any(place.more for place in self.places)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Nodes that are alike, then node types with room for more."""
        alike = Counter((node.type, _own_resources(node), _own_labels(node)) for node in self.nodes)
        now = [
            Place(name=name or "node", amounts=amounts, labels=dict(labels), now=count, more=0)
            for (name, amounts, labels), count in alike.items()
        ]
        workers = Counter(node.type for node in self.nodes if not node.is_head)
        room = max(0.0, self.at_most - workers.total())
        types = [
            Place(
                name=kind.name,
                amounts=tuple(kind.resources.get(resource, 0.0) for resource in RESOURCES),
                labels=kind.labels,
                now=0,
                more=min(room, max(0.0, kind.at_most - workers[kind.name])),
            )
            for kind in self.types or ()
        ]
        return (*now, *(place for place in types if place.more))

    @property
    def room(self) -> float:
        """Nodes that may still come, of all types together."""
        return max(0.0, self.at_most - sum(not node.is_head for node in self.nodes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Nodes that are alike: existing ones, or ones that may be added."""

    name: str
    amounts: tuple[float, ...]
    """Of one node, in the order of `RESOURCES`."""
    labels: Mapping[str, str] | None
    now: int
    more: float

    def slots(self, demand: Demand) -> float:
        """How many actors of this kind one node holds."""
        if self.labels is not None and not matches(demand.labels, self.labels):
            return 0
        cpus, gpus = self.amounts
        most = 1.0 if demand.num_nodes > 1 else math.inf
        return min(most, _times(cpus, demand.cpus), _gpu_slots(gpus, demand.gpus))


def _times(have: float, asked: float) -> float:
    return math.floor((have + ROUNDING) / asked) if asked else math.inf


def _gpu_slots(have: float, asked: float) -> float:
    """How many fractions of a GPU fit: Ray puts each on one GPU, so 2 GPUs hold 0.6 twice, not three times."""
    if not 0 < asked < 1:
        return _times(have, asked)
    whole = math.floor(have + ROUNDING)
    return whole * _times(1.0, asked) + _times(max(0.0, have - whole), asked)


def demands_of(run: RunFile) -> list[Demand]:
    """The demands of all actors of a run, by the names that the launcher gives them; one for each node of a worker."""
    return [
        Demand(
            name=name,
            section=pool.section,
            cpus=pool.num_ranks // pool.num_nodes * pool.placement.num_cpus,
            gpus=pool.num_ranks // pool.num_nodes * pool.placement.num_gpus,
            labels=pool.placement.labels,
            num_ranks=pool.num_ranks // pool.num_nodes,
            num_nodes=pool.num_nodes,
        )
        for pool in run.workers.values()
        for name in pool.worker_names
        for _ in range(pool.num_nodes)
    ]


def check_cluster(run: RunFile, supply: Supply) -> None:
    """Raises InputError, with a table as its note, when the cluster can never hold all actors of the run together."""
    demands = demands_of(run)
    if (reason := refusal(demands, supply)) is not None:
        error = InputError(reason)
        error.add_note(table(demands, supply))
        raise error


def refusal(demands: Sequence[Demand], supply: Supply) -> str | None:
    """Why these actors can never run together on this cluster, and the remedy; None: they may."""
    if supply.types is None:
        return None
    everywhere = frozenset(range(len(supply.places)))
    compatible = [
        frozenset(number for number in everywhere if supply.places[number].slots(demand)) for demand in demands
    ]

    def too_much(numbers: frozenset[int]) -> str | None:
        bound = [demand for demand, fits in zip(demands, compatible, strict=True) if fits <= numbers]
        return _too_much(bound, supply, numbers)

    return too_much(everywhere) or _too_few(demands, supply) or next(filter(None, map(too_much, compatible)), None)


def _can_have(supply: Supply) -> str:
    return "the cluster can have" if supply.grows else "the cluster has"


def _too_few(demands: Sequence[Demand], supply: Supply) -> str | None:
    """Whether too few nodes have room for one actor of a section."""
    for demand, count in _alike(demands):
        if (slots := _most(((place.slots(demand), place) for place in supply.places), supply.room)) < count:
            divided = ", or tensor_parallel" if demand.num_ranks > 1 else ""
            fewer = ", or num_ranks" if demand.section == "learn" else divided
            if demand.num_nodes > 1:
                fewer += ", or num_nodes: each of them is on a node of its own"
            change = f"; lower num_cpus or num_gpus{fewer}" + (" or change labels" if demand.labels else "")
            more = "raise max_workers of a node type that fits" if supply.grows else "join a larger cluster"
            return (
                f"{count} x {demand.section} asks for {demand.asks} each, the cluster {_can(supply)} room for "
                f"{slots:g} of them{change} in [{demand.section}], or {more}"
            )
    return None


def _too_much(bound: Sequence[Demand], supply: Supply, numbers: frozenset[int]) -> str | None:
    """Whether actors that are restricted to these nodes need more than the nodes can have together."""
    places = [supply.places[number] for number in sorted(numbers)]
    # GPUs first: when both are short, the message names the scarcer one.
    for index, resource in reversed(list(enumerate(RESOURCES))):
        asked = sum(demand.amounts[index] for demand in bound)
        most = _most(((place.amounts[index], place) for place in places), supply.room)
        if asked <= most + ROUNDING:
            continue
        where = "the cluster" if len(numbers) == len(supply.places) else f"the nodes that fit ({_names(places)})"
        keys = "num_gpus or num_actors" if resource == "GPU" else "num_cpus"
        return (
            f"the run needs {asked:g} {resource}(s) ({_roles(bound, index)}), {where} {_can(supply)} {most:g}; "
            f"lower {keys} in [rollout], [judging] and [learn], or join a larger cluster"
        )
    return None


def _can(supply: Supply) -> str:
    return "can have" if supply.grows else "has"


def _most(amounts: Iterable[tuple[float, Place]], room: float) -> float:
    """The most of a resource that nodes can have together: existing ones, and the best of those that may be added."""
    found, left = 0.0, room
    for amount, place in sorted(amounts, key=lambda item: -item[0]):
        found += place.now * amount if place.now else 0.0
        if amount and place.more:
            coming = min(left, place.more)
            found += coming * amount
            left -= coming
    return found


def _alike(demands: Sequence[Demand]) -> list[tuple[Demand, int]]:
    """One demand of each section, and its count: all demands of a section are equal."""
    counts = Counter(demand.section for demand in demands)
    firsts = {demand.section: demand for demand in reversed(demands)}
    return [(firsts[section], count) for section, count in counts.items()]


def _roles(demands: Sequence[Demand], index: int) -> str:
    parts = []
    for demand, count in _alike(demands):
        if amount := demand.amounts[index] * count:
            parts.append(f"{f'{count} x ' if demand.section != 'learn' else ''}{demand.section} {amount:g}")
    return ", ".join(parts)


def _names(places: Sequence[Place]) -> str:
    return ", ".join(dict.fromkeys(place.name for place in places)) or "none"


def _own_resources(node: Node) -> tuple[float, ...]:
    return tuple(node.resources.get(resource, 0.0) for resource in RESOURCES)


def _own_labels(node: Node) -> tuple[tuple[str, str], ...]:
    """All labels but the node's own id."""
    return tuple(sorted((key, value) for key, value in node.labels.items() if key != "ray.io/node-id"))


# -- messages ------------------------------------------------------------------------------------------------------


def amounts_shown(amounts: Sequence[float]) -> str:
    """`1 CPU, 0.5 GPU`; zeros are left out."""
    return ", ".join(f"{amount:g} {name}" for amount, name in zip(amounts, RESOURCES, strict=True) if amount)


def table(demands: Sequence[Demand], supply: Supply) -> str:
    """A table: each demand and where it fits, and what the cluster has and can have."""
    asked = [("actors", "each asks for", "fits")]
    for demand, count in _alike(demands):
        fits = _names([place for place in supply.places if place.slots(demand)])
        if fits == "none":
            fits = "nowhere" if supply.types is not None else "not known"
        asked.append((f"{count} x {demand.section}", demand.asks or "nothing", fits))
    has = [("nodes", "now", "at most", "each has")]
    for name in dict.fromkeys(place.name for place in supply.places):
        places = [place for place in supply.places if place.name == name]
        now, more = sum(place.now for place in places), sum(place.more for place in places)
        each = ", ".join(part for part in (amounts_shown(places[-1].amounts), _labels_shown(places[-1])) if part)
        has.append((name, str(now), f"{now + more:g}", each or "nothing for actors"))
    if supply.room < sum(place.more for place in supply.places):
        now = sum(place.now for place in supply.places)
        has.append(("all together", str(now), f"{now + supply.room:g}", "the most that the cluster may have"))
    if supply.types is None:
        has.append(("others", "", "", "the node types of this cluster are not known"))
    return f"{_aligned(asked)}\n\n{_aligned(has)}"


def _labels_shown(place: Place) -> str:
    own = {key: value for key, value in (place.labels or {}).items() if key != "ray.io/node-group"}
    return shown(own)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(f"  {line}" for line in lines)
