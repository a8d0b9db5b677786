"""Where every held group waits, and for whom: the shelves behind the rules of `solon.ledger.ledger`.

A group is in exactly one state. PENDING, GENERATED and READY groups wait on a shelf in the order in which they are
to be taken; GENERATING, JUDGING and LEASED ones are in somebody's hands.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from solon.ledger.snapshot import State

OUT = (State.GENERATING, State.JUDGING)
"""In the hands of an engine or a judge."""


@dataclass(slots=True)
class Entry:
    """A held group. `attempt` fences, `failures` are its own fault, `losses` are not."""

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
    """Who has it in hand."""
    since: float = 0.0
    """When it was handed to the holder, on the ledger's clock."""
    lease_until: float = 0.0
    salvage: tuple[Any, ...] = ()
    """What engines that may be lost have written of it, part after part."""
    salvage_head: int = 0


class GroupQueues:
    """`deadline(head)`: the last step at which a group may be trained; the earliest is taken first."""

    def __init__(self, deadline: Callable[[int], int]) -> None:
        self._deadline = deadline
        self._entries: dict[int, Entry] = {}
        self._pending: deque[int] = deque()
        self._generated: list[tuple[int, int]] = []  # (deadline, ordinal), sorted
        self.ready: list[tuple[int, int]] = []
        """(deadline, ordinal) of labelled groups, sorted."""
        self.nbytes = 0
        """Payload of all held groups."""
        self._writing: defaultdict[str, int] = defaultdict(int)
        self._judging: defaultdict[str, int] = defaultdict(int)

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
        entry = self._entries.get(ordinal)
        return None if entry is None else entry.attempt

    def count(self) -> Counter[State]:
        return Counter(entry.state for entry in self._entries.values())

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    @property
    def num_generated(self) -> int:
        return len(self._generated)

    # -- waiting ------------------------------------------------------------------------------------------------------

    def to_pending(self, entry: Entry) -> None:
        """It is to be generated; comes after those that wait already."""
        entry.state = State.PENDING
        self._entries[entry.ordinal] = entry
        self._pending.append(entry.ordinal)

    def to_generated(self, entry: Entry) -> None:
        self._take_back(entry)
        entry.state, entry.holder = State.GENERATED, ""
        self._entries[entry.ordinal] = entry
        insort(self._generated, (self._deadline(entry.head), entry.ordinal))

    def to_ready(self, entry: Entry) -> None:
        self._take_back(entry)
        entry.state, entry.holder = State.READY, ""
        self._entries[entry.ordinal] = entry
        insort(self.ready, (self._deadline(entry.head), entry.ordinal))

    def again(self, entry: Entry, *, version: int) -> None:
        """Back to the start as another attempt, for which whatever comes from this one is too late."""
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
        return self._entries[self._pending.popleft()]

    def next_generated(self, limit: int) -> list[Entry]:
        taken, self._generated = self._generated[:limit], self._generated[limit:]
        return [self._entries[ordinal] for _, ordinal in taken]

    def take_ready(self, ordinals: Sequence[int]) -> list[Entry]:
        """The groups of a batch, which have the earliest deadlines of all that are ready."""
        self.ready = self.ready[len(ordinals) :]
        entries = [self._entries[ordinal] for ordinal in ordinals]
        for entry in entries:
            entry.state = State.LEASED
        return entries

    def hand_out(self, entry: Entry, state: State, *, now: float, holder: str, lease_s: float) -> None:
        """An engine or a judge takes it in hand."""
        entry.state, entry.holder, entry.since, entry.lease_until = state, holder, now, now + lease_s
        (self._writing if state is State.GENERATING else self._judging)[holder] += 1

    def num_in_hand(self, state: State, holder: str) -> int:
        """Groups that this engine (GENERATING) or judge (JUDGING) has in hand."""
        return (self._writing if state is State.GENERATING else self._judging)[holder]

    def _take_back(self, entry: Entry) -> None:
        """It leaves the hands that it is in, if any."""
        if entry.state is State.GENERATING:
            self._writing[entry.holder] -= 1
        elif entry.state is State.JUDGING:
            self._judging[entry.holder] -= 1

    def hold(self, entry: Entry, nbytes: int) -> None:
        """Its payload has grown."""
        entry.nbytes += nbytes
        self.nbytes += nbytes

    def remove(self, entry: Entry) -> None:
        """Off its shelf and out of the ledger, its bytes given back."""
        self._take_back(entry)
        place = (self._deadline(entry.head), entry.ordinal)
        if entry.state is State.GENERATED:
            self._generated.remove(place)
        elif entry.state is State.READY:
            self.ready.remove(place)
        self.nbytes -= entry.nbytes
        del self._entries[entry.ordinal]

    # -- in somebody's hands --------------------------------------------------------------------------------------

    def out(self) -> list[Entry]:
        """Groups that an engine or a judge has in hand, the longest held first."""
        return sorted((e for e in self._entries.values() if e.state in OUT), key=lambda e: e.since)
