"""The ledger: which group is where, who may touch it, and what may be trained. A pure state machine.

    PENDING -> GENERATING -> GENERATED <-> JUDGING -> READY <-> LEASED -> COMMITTED
                   \\____________\\____________\\_________\\-> PENDING (next attempt) or DROPPED (reason)

What always holds (tests/unit/ledger/test_ledger.py drives random schedules against it):
- admitted = committed + dropped + held, at every moment;
- an ordinal is committed at most once, and a batch has exactly `batch_groups` groups;
- no group is leased at a step later than its deadline (solon.ledger.staleness);
- a report that carries an old attempt, or comes after its group moved on, changes nothing (fencing).

The ledger holds metadata and an opaque payload per group (on Ray: a boxed ObjectRef); it never opens it. Time
is handed in, so that a virtual clock drives it as well as a real one. `cut` and `restore` carry it over to another
process (solon.ledger.snapshot).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from solon.errors import RunFailedError
from solon.files.marks import MayChange
from solon.ledger.drops import ENOUGH_GROUPS, excess
from solon.ledger.queues import OUT, Entry, GroupQueues
from solon.ledger.shares import Ask, share
from solon.ledger.snapshot import LedgerSnapshot, State, before_checkout
from solon.ledger.staleness import StalenessConfig, choose

HELD = (State.GENERATING, State.GENERATED, State.JUDGING, State.READY)
"""Groups that may be given up or made again; a leased one is the learner's."""


class LedgerConfig(BaseModel):
    """Bounds of the ledger. `LedgerConfig(batch_groups=16)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_groups: int = Field(16, ge=1)
    """Groups in a batch: one optimiser step."""
    max_held_mib: Annotated[float, MayChange()] = Field(4096, gt=0)
    """Payload that may wait in the object store, what is still to be written to disk included; admission stops above
    it. The groups of one batch are always let through, however large they are."""
    max_attempts: Annotated[int, MayChange()] = Field(3, ge=1)
    """Tries for a group before it is dropped."""
    max_losses: Annotated[int, MayChange()] = Field(10, ge=1)
    """Workers that may die over one group before it is dropped: a prompt that kills engines must not kill them all."""
    lease_s: Annotated[float, MayChange()] = Field(600, gt=0)
    """A group that an engine or judge holds longer is given to another; late results are refused."""
    lockstep: bool = False
    """Label only when the whole batch is generated: together with target_staleness = 0, synchronous training."""
    max_dropped_share: Annotated[float, MayChange()] = Field(0.05, ge=0, le=1)
    """The run fails when more than this share of at least 40 finished groups was dropped, while it goes on and at its
    end. With fewer groups that is a warning in the summary."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to generate one group. `version` is live when granted: no token will be older.

    `attempt` fences late results; `sample_index` is what the sampling seed depends on. A group that is generated again
    because its worker was lost gets a new attempt and the same sample index, hence the same answers.
    """

    ordinal: int
    attempt: int
    version: int
    sample_index: int = 0
    salvage: tuple[Any, ...] = ()
    """What lost engines had written of it, part after part; `version` is the oldest in it then."""


@dataclass(frozen=True, slots=True)
class Work:
    """A generated group that waits for its labels."""

    ordinal: int
    attempt: int
    payload: Any


@dataclass(frozen=True, slots=True)
class Lease:
    """A batch handed to the learner. `token` fences: only the current lease can commit."""

    step: int
    token: int
    ordinals: tuple[int, ...]
    staleness: tuple[int, ...]
    payloads: tuple[tuple[Any, Any], ...]
    """(generation, feedback) of each group, in order of ordinals."""


class Ledger:
    """See the module. Methods return what changed; they never wait and never look at a clock."""

    def __init__(self, config: LedgerConfig, staleness: StalenessConfig, *, total_groups: int | None = None) -> None:
        self.config = config
        self.staleness = staleness
        self.version = 0
        """Weight versions attested live."""
        self.total_groups = total_groups
        """Groups to commit before the run is over; None: until admission is closed."""
        self.admitted = 0
        self.committed = 0
        self.dropped: Counter[str] = Counter()
        self.unwritten_bytes = 0
        """Payload that a group has left or may leave and that is kept all the same, until it is written to disk."""
        self.on_drop: Callable[[int, str], None] = lambda ordinal, reason: None
        """Told of every group that is dropped, with its reason."""
        self._open = True
        self._queues = GroupQueues(staleness.deadline)
        self._lease: Lease | None = None
        self._lease_tokens = 0
        self._unpublished: dict[int, int] = {}  # step -> groups leased or trained whose weights are not live

    # -- admission ---------------------------------------------------------------------------------------------

    def reserve(self, limit: int, *, now: float, holder: str = "", others: Iterable[Ask] = ()) -> list[Grant]:
        """Admit up to `limit` groups as credits allow, retries first. `others` ask at the same time: the holder gets
        its share."""
        queues = self._queues
        limit = self._share(self.num_reservable, State.GENERATING, Ask(holder, limit), others)
        for _ in range(limit - queues.num_pending):
            queues.to_pending(Entry(self.admitted, 0, self.version))
            self.admitted += 1
        grants = []
        for _ in range(limit):
            entry = queues.next_pending()
            if entry.salvage and self.staleness.deadline(entry.salvage_head) <= self.version:
                entry.salvage = ()  # too old to be worth continuing
            entry.head = self._head_when_granted(entry)
            queues.hand_out(entry, State.GENERATING, now=now, holder=holder, lease_s=self.config.lease_s)
            grants.append(Grant(entry.ordinal, entry.attempt, entry.head, entry.failures, entry.salvage))
        return grants

    @property
    def num_reservable(self) -> int:
        """Groups that may be generated now: those that wait for another try, and those that credits admit."""
        return self._queues.num_pending + max(0, self._credits()) if self._open else 0

    def _share(self, available: int, state: State, ask: Ask, others: Iterable[Ask]) -> int:
        """Of what is there, for one of those who ask."""
        in_hand = self._queues.num_in_hand
        rest = [(other.room, in_hand(state, other.holder)) for other in others] if available else []
        return share(available, ask.room, in_hand(state, ask.holder), rest)

    def _head_when_granted(self, entry: Entry) -> int:
        return entry.salvage_head if entry.salvage else self.version

    def _credits(self) -> int:
        held = len(self._queues)
        free = self.staleness.credits(
            batch_groups=self.config.batch_groups,
            uncommitted=held - (len(self._lease.ordinals) if self._lease else 0),
            unpublished=sum(self._unpublished.values()),
        )
        free = min(free, self._credits_by_size(held))
        return free if self.total_groups is None else min(free, self.total_groups - self.committed - held)

    def _credits_by_size(self, held: int) -> int:
        """What the byte budget allows. A batch that is larger than the budget is let through alone: fewer groups than a
        batch can never be trained, so their bytes would never be freed."""
        if self.unwritten_bytes >= self.config.max_held_mib * 2**20:
            return 0  # freed by writing, which waits for no group
        return max(0, self.config.batch_groups - held) if self.is_over_budget else sys.maxsize

    def close(self) -> None:
        """Admit nothing more. What is held may still be finished, or go into a cut."""
        self._open = False

    @property
    def is_over_budget(self) -> bool:
        """Held payloads and those still to be written fill the byte budget."""
        return self._queues.nbytes + self.unwritten_bytes >= self.config.max_held_mib * 2**20

    @property
    def is_closed(self) -> bool:
        """Admission was ended by hand."""
        return not self._open

    @property
    def is_drained(self) -> bool:
        """Nothing will ever be admitted again, and nothing is held."""
        if len(self._queues):
            return False
        return not self._open or (self.total_groups is not None and self.committed >= self.total_groups)

    # -- generation and labels ------------------------------------------------------------------------------------

    def commit_generation(self, ordinal: int, attempt: int, *, head: int, nbytes: int, payload: Any) -> bool:
        """A group was generated. False: refused, its attempt is not the current one."""
        entry = self._queues.find(ordinal, attempt, State.GENERATING)
        if entry is None:
            return False
        assert head >= entry.head, f"group {ordinal} holds version {head}, granted at {entry.head}"
        entry.head, entry.generation, entry.salvage = head, payload, ()
        self._queues.hold(entry, nbytes)
        self._queues.to_generated(entry)
        return True

    def keep(self, ordinal: int, attempt: int, *, head: int, salvage: Any) -> bool:
        """What was written since the last call of a group that is being generated, should its engine be lost. False:
        refused."""
        entry = self._queues.find(ordinal, attempt, State.GENERATING)
        if entry is None:
            return False
        entry.salvage_head = min(entry.salvage_head, head) if entry.salvage else head
        entry.salvage += (salvage,)
        return True

    @property
    def num_labelable(self) -> int:
        """Generated groups that may be labelled now."""
        if self.config.lockstep and any(e.state in (State.PENDING, State.GENERATING) for e in self._queues):
            return 0
        return self._queues.num_generated

    def take_generated(self, limit: int, *, now: float, holder: str = "", others: Iterable[Ask] = ()) -> list[Work]:
        """Hand out up to `limit` generated groups for labelling, the earliest deadline first. `others` ask at the same
        time: the holder gets its share."""
        limit = self._share(self.num_labelable, State.JUDGING, Ask(holder, limit), others)
        work = []
        for entry in self._queues.next_generated(limit):
            self._queues.hand_out(entry, State.JUDGING, now=now, holder=holder, lease_s=self.config.lease_s)
            work.append(Work(entry.ordinal, entry.attempt, entry.generation))
        return work

    def commit_labels(self, ordinal: int, attempt: int, *, nbytes: int, payload: Any) -> bool:
        """A group was labelled and may be trained. False: refused."""
        entry = self._queues.find(ordinal, attempt, State.JUDGING)
        if entry is None:
            return False
        entry.feedback = payload
        self._queues.hold(entry, nbytes)
        self._queues.to_ready(entry)
        return True

    # -- what comes to nothing ------------------------------------------------------------------------------------

    def fail(self, ordinal: int, attempt: int, reason: str) -> bool:
        """An attempt failed: the group is sampled again with fresh weights, or dropped. False: refused."""
        entry = self._queues.find(ordinal, attempt, *OUT)
        if entry is None:
            return False
        entry.failures += 1
        if entry.failures >= self.config.max_attempts:
            return self.drop(ordinal, attempt, reason)
        entry.salvage = ()  # it led to nothing
        self._queues.again(entry, version=self.version)
        return True

    def requeue(self, ordinal: int, attempt: int, reason: str, *, is_loss: bool = True) -> bool:
        """A group was lost with its engine or with its payload: generate it again from the same sample index. Dropped
        when that happened too often. is_loss: False when its engine left in good order. False: refused."""
        entry = self._queues.find(ordinal, attempt, *HELD)
        if entry is None:
            return False
        if is_loss and self._is_lost_too_often(entry, reason):
            return True
        self._queues.again(entry, version=self.version)
        return True

    def return_work(self, ordinal: int, attempt: int, reason: str, *, is_loss: bool = True) -> bool:
        """The judge that held this group was lost, or left (`is_loss` False): another one labels it. False: refused."""
        entry = self._queues.find(ordinal, attempt, State.JUDGING)
        if entry is None:
            return False
        if not (is_loss and self._is_lost_too_often(entry, reason)):
            self._queues.to_generated(entry)
        return True

    def drop(self, ordinal: int, attempt: int, reason: str) -> bool:
        """Give a group up for good; its credit is free again, so a new prompt takes its place. False: refused."""
        entry = self._queues.find(ordinal, attempt, *HELD)
        if entry is None:
            return False
        self._queues.remove(entry)
        self.dropped[reason] += 1
        self.on_drop(ordinal, reason)
        if self._open:
            self._check_drops()
        return True

    def expire(self, *, now: float) -> list[int]:
        """Fail every group whose engine or judge held it too long; returns their ordinals."""
        late = [entry for entry in self._queues.out() if entry.lease_until <= now]
        for entry in late:
            self.fail(entry.ordinal, entry.attempt, f"{entry.state} took too long")
        return [entry.ordinal for entry in late]

    def next_expiry(self) -> float | None:
        """When `expire` has something to do at the earliest."""
        return min((e.lease_until for e in self._queues if e.state in OUT), default=None)

    # -- training -----------------------------------------------------------------------------------------------

    def lease(self, step: int) -> Lease | None:
        """The batch for `step`, or None while the groups it needs are not ready or the step before is out.

        One lease at a time; the next step may already wait for its turn.
        """
        if self._lease is not None and step == self._lease.step + 1:
            return None
        if self._lease is not None:
            raise RunFailedError(f"step {self._lease.step} holds the lease, cannot lease step {step}")
        batch_groups, ready = self.config.batch_groups, self._queues.ready
        if len(ready) < batch_groups:
            return None
        unfinished = [
            # What waits to be generated again will be of the weights that are live then.
            self.staleness.deadline(self._head_when_granted(e) if e.state is State.PENDING else e.head)
            for e in self._queues
            if e.state is not State.READY
        ]
        chosen = choose(ready, unfinished, step=step, batch_groups=batch_groups)
        if chosen is None:
            return None
        entries = self._queues.take_ready(sorted(chosen))
        self._lease_tokens += 1
        self._unpublished[step] = len(entries)
        self._lease = Lease(
            step,
            self._lease_tokens,
            tuple(e.ordinal for e in entries),
            tuple(step - e.head for e in entries),
            tuple((e.generation, e.feedback) for e in entries),
        )
        return self._lease

    def commit(self, step: int, token: int) -> bool:
        """The batch was trained. False: refused, the lease is no longer the current one."""
        lease = self._current_lease(step, token)
        if lease is None:
            return False
        for ordinal in lease.ordinals:
            self._queues.remove(self._queues[ordinal])
        self.committed += len(lease.ordinals)
        self._lease = None
        return True

    def abort(self, step: int, token: int) -> bool:
        """The step did not happen: its groups are ready again. False: refused."""
        lease = self._current_lease(step, token)
        if lease is None:
            return False
        for ordinal in lease.ordinals:
            self._queues.to_ready(self._queues[ordinal])
        del self._unpublished[step]
        self._lease = None
        return True

    def publish(self, version: int) -> bool:
        """`version` is attested on every engine: credits of the steps before it are free. False: not newer."""
        if version <= self.version:
            return False
        self.version = version
        for step in [s for s in self._unpublished if s < version]:
            del self._unpublished[step]
        return True

    # -- looking --------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many groups are in each state, and the running totals."""
        states = self._queues.count()
        return {
            **{str(state): states[state] for state in State},
            "admitted": self.admitted,
            "committed": self.committed,
            "dropped": self.dropped.total(),
            "held": len(self._queues),
            "held_bytes": self._queues.nbytes,
            "unwritten_bytes": self.unwritten_bytes,
            "version": self.version,
        }

    def held(self) -> Sequence[int]:
        """Ordinals that are neither committed nor dropped."""
        return sorted(entry.ordinal for entry in self._queues)

    def attempts(self, ordinals: Iterable[int]) -> dict[int, int]:
        """The current attempt of each of these groups that is held."""
        found = {ordinal: self._queues.attempt_of(ordinal) for ordinal in ordinals}
        return {ordinal: attempt for ordinal, attempt in found.items() if attempt is not None}

    def out(self, *, now: float) -> list[dict[str, Any]]:
        """Groups in somebody's hands, the longest held first: who has them, and for how many seconds."""
        return [
            {"ordinal": e.ordinal, "attempt": e.attempt, "state": str(e.state), "holder": e.holder,
             "seconds": round(now - e.since, 3)}
            for e in self._queues.out()
        ]  # fmt: skip

    # -- another process ----------------------------------------------------------------------------------------------

    def cut(self) -> tuple[LedgerSnapshot, dict[int, tuple[Any, Any]]]:
        """The ledger between two steps, and (generation, feedback) of the groups that have them.

        What somebody works on at this moment is cut as it was before that: its worker belongs to this process.
        """
        entries = sorted(self._queues, key=lambda e: e.ordinal)
        saved = tuple(before_checkout(e) for e in entries)
        payloads = {
            e.ordinal: (e.generation, e.feedback)
            for e, kept in zip(entries, saved, strict=True)
            if kept.state is not State.PENDING
        }
        return LedgerSnapshot(
            admitted=self.admitted, committed=self.committed, dropped=dict(self.dropped), entries=saved
        ), payloads

    def restore(self, cut: LedgerSnapshot, payloads: Mapping[int, tuple[Any, Any]], *, version: int) -> None:
        """Take over a cut. `version`: the weights that the engines hold now.

        A group without payload is generated again, one that can no longer be trained in time as well.
        """
        if self.admitted:
            raise RunFailedError("a ledger that has admitted groups cannot take over a cut; make a new one")
        self.version, self.admitted, self.committed = version, cut.admitted, cut.committed
        self.dropped = Counter(cut.dropped)
        for saved in cut.entries:
            entry = Entry(saved.ordinal, saved.attempt, version, failures=saved.failures, losses=saved.losses)
            entry.generation, entry.feedback = payloads.get(saved.ordinal, (None, None))
            if (
                saved.state is State.PENDING
                or entry.generation is None
                or self.staleness.deadline(saved.head) < version
            ):
                entry.generation = entry.feedback = None
                self._queues.to_pending(entry)
                continue
            entry.head = saved.head
            self._queues.hold(entry, saved.nbytes)
            if saved.state is State.READY and entry.feedback is not None:
                self._queues.to_ready(entry)
            else:
                self._queues.to_generated(entry)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _current_lease(self, step: int, token: int) -> Lease | None:
        lease = self._lease
        return lease if lease is not None and (lease.step, lease.token) == (step, token) else None

    def _is_lost_too_often(self, entry: Entry, reason: str) -> bool:
        """Counts a loss; a group that costs too many workers is dropped."""
        entry.losses += 1
        if entry.losses < self.config.max_losses:
            return False
        return self.drop(entry.ordinal, entry.attempt, f"lost {entry.losses} times, last: {reason}")

    def _check_drops(self) -> None:
        if self.dropped.total() + self.committed < ENOUGH_GROUPS:
            return
        if (text := excess(self.dropped, self.committed, self.config.max_dropped_share)) is not None:
            raise RunFailedError(text)
