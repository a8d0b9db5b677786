"""The ledger: which group is where, who may touch it, and what may be trained. A pure state machine.

    PENDING -> GENERATING -> GENERATED <-> JUDGING -> READY <-> LEASED -> COMMITTED
                   \\____________\\____________\\_________\\-> PENDING (next attempt) or DROPPED (reason)

Invariants (tests/unit/ledger/test_ledger.py drives random schedules against them):
- admitted = committed + dropped + held, at every moment;
- an ordinal is committed at most once, and a batch has exactly `batch_groups` groups;
- no group is leased at a step later than its deadline (solon.ledger.staleness);
- a report that carries an old attempt, or comes after its group moved on, changes nothing (fencing).

The ledger holds metadata and an opaque payload per group (on Ray: a boxed ObjectRef); it never opens it. Time is
an argument, so a virtual clock drives it as well as a real one. `cut` and `restore` move it to another process
(solon.ledger.carry_over).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from solon.errors import RunFailedError
from solon.ledger.admission import Holdings, credits, is_over_budget
from solon.ledger.batches import Batches
from solon.ledger.carry_over import restore_entries, saved_entries
from solon.ledger.config import LedgerConfig
from solon.ledger.drops import ENOUGH_GROUPS, excess
from solon.ledger.leases import Grant, Lease, Work
from solon.ledger.queues import OUT, Entry, GroupQueues
from solon.ledger.shares import Ask, share
from solon.ledger.snapshot import LedgerSnapshot, State
from solon.ledger.staleness import StalenessConfig

__all__ = ["Grant", "Lease", "Ledger", "LedgerConfig", "Work"]

HELD = (State.GENERATING, State.GENERATED, State.JUDGING, State.READY)
"""Groups that may be dropped or generated again; a leased one belongs to the learner."""


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
        """Payload that is kept until it is written to disk, although its group may be trained or dropped already."""
        self.on_drop: Callable[[int, str], None] = lambda ordinal, reason: None
        """Called with every group that is dropped, and the reason."""
        self._open = True
        self._queues = GroupQueues(staleness.deadline)
        self._batches = Batches(self._queues, staleness, batch_groups=config.batch_groups)

    # -- admission ---------------------------------------------------------------------------------------------

    def reserve(self, limit: int, *, now: float, holder: str = "", others: Iterable[Ask] = ()) -> list[Grant]:
        """Admit up to `limit` groups as credits allow, retries first.

        now: seconds on the ledger's clock. others: workers that ask at the same time; the holder gets its share.
        """
        queues = self._queues
        limit = self._share(self.num_reservable, State.GENERATING, holder, limit, others)
        for _ in range(limit - queues.num_pending):
            queues.to_pending(Entry(self.admitted, 0, self.version))
            self.admitted += 1
        grants = []
        for _ in range(limit):
            entry = queues.next_pending()
            if entry.salvage and self.staleness.deadline(entry.salvage_head) <= self.version:
                entry.salvage = ()  # too old to continue
            entry.head = entry.head_when_granted(self.version)
            queues.hand_out(entry, State.GENERATING, now=now, holder=holder, lease_s=self.config.lease_s)
            grants.append(Grant(entry.ordinal, entry.attempt, entry.head, entry.failures, entry.salvage))
        return grants

    @property
    def num_reservable(self) -> int:
        """Groups that may be generated now: retries, and those that credits admit."""
        return self._queues.num_pending + max(0, self._credits()) if self._open else 0

    def on_return(self, call: Callable[[State, str], None]) -> None:
        """Have `call(state, holder)` called whenever an engine (GENERATING) or a judge (JUDGING) holds a group less."""
        self._queues.on_return = call

    def held_by(self, state: State) -> Mapping[str, int]:
        """How many groups each engine (GENERATING) or judge (JUDGING) holds; 0 for any other name. It changes with
        them."""
        return self._queues.checked_out(state)

    def _share(self, available: int, state: State, holder: str, room: int, others: Iterable[Ask]) -> int:
        """How many of the available groups go to one of the workers that ask."""
        if others == () or not available:
            return min(room, available)
        held = self._queues.checked_out(state)
        return share(available, room, held[holder], [(other.room, held[other.holder]) for other in others])

    def _credits(self) -> int:
        holdings = Holdings(
            held=len(self._queues),
            leased=self._batches.num_leased,
            unpublished=self._batches.num_unpublished,
            nbytes=self._queues.nbytes,
            unwritten_bytes=self.unwritten_bytes,
        )
        still_needed = None if self.total_groups is None else self.total_groups - self.committed
        return credits(self.config, self.staleness, holdings, still_needed=still_needed)

    def close(self) -> None:
        """Admit nothing more. Held groups may still be finished, or be saved by `cut`."""
        self._open = False

    @property
    def is_over_budget(self) -> bool:
        """Whether held and unwritten payloads fill the byte budget."""
        return is_over_budget(self.config, nbytes=self._queues.nbytes, unwritten_bytes=self.unwritten_bytes)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return not self._open

    @property
    def is_drained(self) -> bool:
        """Whether nothing is held and nothing will be admitted again."""
        if len(self._queues):
            return False
        return not self._open or (self.total_groups is not None and self.committed >= self.total_groups)

    # -- generation and labels ------------------------------------------------------------------------------------

    def commit_generation(self, ordinal: int, attempt: int, *, head: int, nbytes: int, payload: Any) -> bool:
        """A group was generated. False: refused, the attempt is not the current one.

        head: oldest policy version in the group. nbytes: size of the payload.
        """
        entry = self._queues.find(ordinal, attempt, State.GENERATING)
        if entry is None:
            return False
        assert head >= entry.head, f"group {ordinal} holds version {head}, granted at {entry.head}"
        entry.head, entry.generation, entry.salvage = head, payload, ()
        self._queues.hold(entry, nbytes)
        self._queues.to_generated(entry)
        return True

    def keep(self, ordinal: int, attempt: int, *, head: int, salvage: Any) -> bool:
        """Keep the tokens that a group has gained since the last call, in case its engine is lost. False: refused."""
        entry = self._queues.find(ordinal, attempt, State.GENERATING)
        if entry is None:
            return False
        entry.salvage_head = min(entry.salvage_head, head) if entry.salvage else head
        entry.salvage += (salvage,)
        return True

    @property
    def num_labelable(self) -> int:
        """Generated groups that may be labelled now."""
        queues = self._queues
        if self.config.lockstep and queues.num_pending + queues.num_generating:
            return 0
        return queues.num_generated

    def take_generated(self, limit: int, *, now: float, holder: str = "", others: Iterable[Ask] = ()) -> list[Work]:
        """Hand out up to `limit` generated groups for labelling, the earliest deadline first.

        now: seconds on the ledger's clock. others: workers that ask at the same time; the holder gets its share.
        """
        limit = self._share(self.num_labelable, State.JUDGING, holder, limit, others)
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

    # -- failures and losses ------------------------------------------------------------------------------------

    def fail(self, ordinal: int, attempt: int, reason: str) -> bool:
        """An attempt failed: the group is sampled again with fresh weights, or dropped. False: refused."""
        entry = self._queues.find(ordinal, attempt, *OUT)
        if entry is None:
            return False
        entry.failures += 1
        if entry.failures >= self.config.max_attempts:
            return self.drop(ordinal, attempt, reason)
        entry.salvage = ()  # it may have caused the failure
        self._queues.again(entry, version=self.version)
        return True

    def requeue(self, ordinal: int, attempt: int, reason: str, *, is_loss: bool = True) -> bool:
        """A group was lost with its engine or with its payload: generate it again from the same sample index. Dropped
        when that happened too often. is_loss: False when its engine left in order. False: refused."""
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
        """Drop a group; its credit is free again, so a new prompt takes its place. False: refused."""
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
        """Time of the earliest lease end, on the ledger's clock; None: no worker holds a group."""
        return min((e.lease_until for e in self._queues if e.state in OUT), default=None)

    # -- training -----------------------------------------------------------------------------------------------

    def can_lease(self, step: int) -> bool:
        """Whether `lease` would return a batch or raise."""
        return self._batches.is_ready(step, version=self.version)

    def lease(self, step: int) -> Lease | None:
        """The batch for `step`, or None while the groups it needs are not ready or the step before is leased.

        One lease at a time; the next step may already wait. Raises RunFailedError for any other step.
        """
        return self._batches.lease(step, version=self.version)

    def commit(self, step: int, token: int) -> bool:
        """The batch was trained. False: refused, the lease is no longer the current one."""
        trained = self._batches.commit(step, token)
        self.committed += trained or 0
        return trained is not None

    def abort(self, step: int, token: int) -> bool:
        """The step did not happen: its groups are ready again. False: refused."""
        return self._batches.abort(step, token)

    def publish(self, version: int) -> bool:
        """`version` is attested on every engine: credits of the steps before it are free. False: not newer."""
        if version <= self.version:
            return False
        self.version = version
        self._batches.published(version)
        return True

    # -- queries --------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many groups are in each state, and the running totals."""
        states = self._queues.count(self._batches.num_leased)
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
        """Groups that workers hold, the longest held first: holder and seconds of each."""
        return [
            {"ordinal": e.ordinal, "attempt": e.attempt, "state": str(e.state), "holder": e.holder,
             "seconds": round(now - e.since, 3)}
            for e in self._queues.out()
        ]  # fmt: skip

    # -- another process ----------------------------------------------------------------------------------------------

    def cut(self) -> tuple[LedgerSnapshot, dict[int, tuple[Any, Any]]]:
        """The ledger between two steps, and (generation, feedback) of the groups that have them.

        A group that a worker holds is saved as it was before checkout: its worker belongs to this process.
        """
        saved, payloads = saved_entries(self._queues)
        cut = LedgerSnapshot(
            admitted=self.admitted, committed=self.committed, dropped=dict(self.dropped), entries=saved
        )
        return cut, payloads

    def restore(self, cut: LedgerSnapshot, payloads: Mapping[int, tuple[Any, Any]], *, version: int) -> None:
        """Continue from a snapshot. `version`: the weights that the engines hold now.

        A group without payload, or one that can no longer be trained in time, is generated again. Raises RunFailedError
        when this ledger has admitted groups already.
        """
        if self.admitted:
            raise RunFailedError("a ledger that has admitted groups cannot restore a snapshot; make a new one")
        self.version, self.admitted, self.committed = version, cut.admitted, cut.committed
        self.dropped = Counter(cut.dropped)
        restore_entries(self._queues, cut, payloads, self.staleness, version=version)

    # -- internals ---------------------------------------------------------------------------------------------------

    def _is_lost_too_often(self, entry: Entry, reason: str) -> bool:
        """Count a loss; drop the group when it has cost too many workers."""
        entry.losses += 1
        if entry.losses < self.config.max_losses:
            return False
        return self.drop(entry.ordinal, entry.attempt, f"lost {entry.losses} times, last: {reason}")

    def _check_drops(self) -> None:
        if self.dropped.total() + self.committed < ENOUGH_GROUPS:
            return
        if (text := excess(self.dropped, self.committed, self.config.max_dropped_share)) is not None:
            raise RunFailedError(text)
