"""The queues of held groups behind the rules of `solon.ledger.ledger`.

A group is in exactly one state. PENDING, GENERATED and READY groups wait in a queue, in the order in which they are
taken; GENERATING, JUDGING and LEASED groups are checked out by a worker.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from solon.ledger.ready import ReadyGroups
from solon.ledger.snapshot import State

OUT = (State.GENERATING, State.JUDGING)
"""Checked out by an engine or a judge."""


@dataclass(slots=True)
class Entry:
    """A held group. `attempt` fences; `failures` counts failed attempts, `losses` workers that died on it."""

    ordinal: int
    attempt: int
    head: int
    """Oldest policy version in it, or the one it is to be generated with."""
    state: State = State.PENDING
    failures: int = 0
    losses: int = 0
    nbytes: int = 0
    generation: Any = None
    feedback: Any = None
    holder: str = ""
    """The worker that holds it; empty: none."""
    since: float = 0.0
    """When it was handed to the holder, on the ledger's clock."""
    lease_until: float = 0.0
    salvage: tuple[Any, ...] = ()
    """Parts that engines have generated so far, in order, in case the engine is lost."""
    salvage_head: int = 0
    """Oldest policy version in `salvage`."""
    counted: int | None = None
    """The head under which it counts as unfinished; None: it does not."""

    def head_when_granted(self, version: int) -> int:
        """Oldest version that the group will have when it is generated with this one."""
        # While a version is rolled out, an engine that has it may leave tokens of it to one that does not have it yet.
        return min(self.salvage_head, version) if self.salvage else version


class GroupQueues:
    """`deadline(head)`: the last step at which a group may be trained; the earliest is taken first."""

    def __init__(self, deadline: Callable[[int], int]) -> None:
        self._deadline = deadline
        self._entries: dict[int, Entry] = {}
        self._pending: deque[int] = deque()
        self._generated: list[tuple[int, int]] = []  # (deadline, ordinal), sorted
        self.ready = ReadyGroups()
        """Labelled groups."""
        self.nbytes = 0
        """Payload of all held groups."""
        self._heads: dict[int, int] = {}
        self.num_generating = 0
        """Groups that engines hold."""
        self.on_return: Callable[[State, str], None] = lambda state, holder: None
        """Called when an engine (GENERATING) or a judge (JUDGING) holds one group less."""
        self._writing: Counter[str] = Counter()
        self._judging: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __getitem__(self, ordinal: int) -> Entry:
        return self._entries[ordinal]

    def find(self, ordinal: int, attempt: int, *states: State) -> Entry | None:
        """The group, if this is its current attempt and it is in one of these states."""
        entry = self._entries.get(ordinal)
        if entry is None or entry.attempt != attempt or entry.state not in states:
            return None
        return entry

    def attempt_of(self, ordinal: int) -> int | None:
        """The current attempt of a held group; None: not held."""
        entry = self._entries.get(ordinal)
        return None if entry is None else entry.attempt

    def count(self, num_leased: int) -> dict[State, int]:
        """Groups by state, of which the learner holds `num_leased`. Takes the same time however many there are."""
        counted = {
            State.PENDING: len(self._pending),
            State.GENERATING: self.num_generating,
            State.GENERATED: len(self._generated),
            State.READY: len(self.ready),
            State.LEASED: num_leased,
        }
        counted[State.JUDGING] = len(self._entries) - sum(counted.values())
        return counted

    @property
    def num_pending(self) -> int:
        """Groups that wait for generation."""
        return len(self._pending)

    @property
    def num_generated(self) -> int:
        """Groups that wait for labels."""
        return len(self._generated)

    # -- waiting ------------------------------------------------------------------------------------------------------

    def to_pending(self, entry: Entry) -> None:
        """Queue the group for generation, after those that wait already."""
        entry.state = State.PENDING
        self._entries[entry.ordinal] = entry
        self._pending.append(entry.ordinal)

    def to_generated(self, entry: Entry) -> None:
        """Queue the group for labelling, by deadline."""
        self._take_back(entry)
        entry.state, entry.holder = State.GENERATED, ""
        self._entries[entry.ordinal] = entry
        self._count(entry)
        insort(self._generated, (self._deadline(entry.head), entry.ordinal))

    def to_ready(self, entry: Entry) -> None:
        """Queue the group for training, by deadline."""
        self._take_back(entry)
        entry.state, entry.holder = State.READY, ""
        self._entries[entry.ordinal] = entry
        self.ready.add(self._deadline(entry.head), entry.ordinal)

    def again(self, entry: Entry, *, version: int) -> None:
        """Queue the group for generation as a new attempt; results of this attempt are refused from now on."""
        self.remove(entry)
        self.to_pending(
            Entry(
                entry.ordinal,
                entry.attempt + 1,
                version,
                failures=entry.failures,
                losses=entry.losses,
                salvage=entry.salvage,
                salvage_head=entry.salvage_head,
            )
        )

    # -- taking -------------------------------------------------------------------------------------------------------

    def next_pending(self) -> Entry:
        """Take the first group that waits for generation."""
        return self._entries[self._pending.popleft()]

    def next_generated(self, limit: int) -> list[Entry]:
        """Take up to `limit` groups that wait for labels, the earliest deadline first."""
        taken = self._generated[:limit]
        del self._generated[:limit]
        return [self._entries[ordinal] for _, ordinal in taken]

    def take_ready(self, count: int) -> list[Entry]:
        """Take the groups of a batch: those with the earliest deadlines of all that are ready, in order of ordinals."""
        entries = [self._entries[ordinal] for ordinal in self.ready.take(count)]
        for entry in entries:
            entry.state = State.LEASED
        return entries

    def hand_out(self, entry: Entry, state: State, *, now: float, holder: str, lease_s: float) -> None:
        """An engine or a judge checks the group out, until `now + lease_s`."""
        entry.state, entry.holder, entry.since, entry.lease_until = state, holder, now, now + lease_s
        self._count(entry)
        if state is State.GENERATING:
            self._writing[holder] += 1
            self.num_generating += 1
        else:
            self._judging[holder] += 1

    def checked_out(self, state: State) -> Counter[str]:
        """How many groups each engine (GENERATING) or judge (JUDGING) holds, by its name. It changes with them."""
        return self._writing if state is State.GENERATING else self._judging

    def _take_back(self, entry: Entry) -> None:
        """Its worker, if any, no longer holds it, and it does not count as unfinished."""
        if entry.counted is not None:
            self._heads[entry.counted] -= 1
            entry.counted = None
        if entry.state is State.GENERATING:
            self._writing[entry.holder] -= 1
            self.num_generating -= 1
            self.on_return(State.GENERATING, entry.holder)
        elif entry.state is State.JUDGING:
            self._judging[entry.holder] -= 1
            self.on_return(State.JUDGING, entry.holder)

    def _count(self, entry: Entry) -> None:
        """It is unfinished, and will have its present head."""
        if entry.counted == entry.head:
            return
        if entry.counted is not None:
            self._heads[entry.counted] -= 1
        entry.counted = entry.head
        self._heads[entry.head] = self._heads.get(entry.head, 0) + 1

    def unfinished(self, version: int) -> dict[int, int]:
        """How many groups of each deadline wait for generation or labels, or are with a worker. version: live now; a
        group that waits for generation will have it."""
        for head in [head for head, count in self._heads.items() if not count]:
            del self._heads[head]
        deadlines = {self._deadline(head): count for head, count in self._heads.items()}
        for ordinal in self._pending:
            deadline = self._deadline(self._entries[ordinal].head_when_granted(version))
            deadlines[deadline] = deadlines.get(deadline, 0) + 1
        return deadlines

    def hold(self, entry: Entry, nbytes: int) -> None:
        """Add the bytes of a payload to the group."""
        entry.nbytes += nbytes
        self.nbytes += nbytes

    def remove(self, entry: Entry) -> None:
        """Remove the group from its queue and from the ledger, and free its bytes."""
        self._take_back(entry)
        if entry.state is State.GENERATED:
            self._generated.remove((self._deadline(entry.head), entry.ordinal))
        elif entry.state is State.READY:
            self.ready.remove(self._deadline(entry.head), entry.ordinal)
        self.nbytes -= entry.nbytes
        del self._entries[entry.ordinal]

    # -- checked out ----------------------------------------------------------------------------------------------

    def out(self) -> list[Entry]:
        """Groups that an engine or a judge holds, the longest held first."""
        return sorted((e for e in self._entries.values() if e.state in OUT), key=lambda e: e.since)
