"""The ledger behind an event loop: the same transitions, plus waiting. Plain asyncio.

A stage without work waits; the transition that gives it work wakes it, and no other stage. No stage polls. The only
timer takes groups back from an engine or judge that holds them for longer than `lease_s`. All transitions are made on
one event loop, without waiting in between, so none sees another half made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from solon.clock import Clock
from solon.ledger.ledger import Grant, Lease, Ledger, LedgerConfig, Work
from solon.ledger.shares import Ask
from solon.ledger.snapshot import LedgerSnapshot, State
from solon.ledger.staleness import StalenessConfig
from solon.ledger.turns import Turns

T = TypeVar("T")


class AsyncLedger:
    """`await ledger.lease(step)` returns when the batch is there.

    Every waiting method returns None or an empty list once the ledger is drained or closed. `progress` counts
    transitions: it does not change while all stages wait.
    """

    def __init__(
        self,
        config: LedgerConfig,
        staleness: StalenessConfig,
        *,
        total_groups: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._ledger = Ledger(config, staleness, total_groups=total_groups)
        self.batch_groups = config.batch_groups
        self._clock = clock or Clock()
        self._reaper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        ledger = self._ledger
        self._engines = Turns(lambda: ledger.num_reservable, ledger.held_by(State.GENERATING))
        self._judges = Turns(lambda: ledger.num_labelable, ledger.held_by(State.JUDGING))
        ledger.on_return(self._returned)
        self._leasing: dict[asyncio.Future[None], int] = {}
        """The steps that wait for a batch."""
        self._failure: Exception | None = None
        self._emit: Callable[..., None] = lambda name, **fields: None
        self._granted: Callable[[str, Sequence[Grant]], None] = lambda holder, grants: None
        self._taken: Callable[[str, Sequence[Work]], None] = lambda holder, work: None
        self.progress = 0

    def listen(self, emit: Callable[..., None]) -> None:
        """`emit(name, **fields)` is called for every group that is tried again or dropped, as it happens."""
        self._emit = emit
        self._ledger.on_drop = lambda ordinal, reason: emit("group_dropped", ordinal=ordinal, reason=reason)

    def follow(
        self, *, granted: Callable[[str, Sequence[Grant]], None], taken: Callable[[str, Sequence[Work]], None]
    ) -> None:
        """`granted(holder, grants)` is called with the groups that an engine gets, `taken(holder, work)` with those
        that a judge gets."""
        self._granted, self._taken = granted, taken

    def hold_back(self, unwritten_bytes: int) -> None:
        """This many bytes of payloads are kept until they are written: they count against the byte budget.

        Wakes workers that wait for a credit when the number falls."""
        was_over, fell = self._ledger.is_over_budget, unwritten_bytes < self._ledger.unwritten_bytes
        self._ledger.unwritten_bytes = unwritten_bytes
        if was_over and fell:
            self.wake()

    def wake(self) -> None:
        """Makes all waiting workers check again whether they have work and are up."""
        self._engines.wake()
        self._judges.wake()

    async def reserve(
        self, limit: int, *, holder: str = "", is_up: Callable[[], bool] = lambda: True
    ) -> list[Grant] | None:
        """Permission for up to `limit` groups. Waits for a credit; woken by publish, requeue or drop.

        Engines that wait together share the available groups, so that none is idle while another has more than it
        decodes. None: the holder went down meanwhile, and must ask again when it is up.
        """
        grants = await self._part_of(self._engines, Ask(holder, limit, is_up), self._ledger.reserve)
        if grants:
            self._granted(holder, grants)
        return grants

    async def next_generated(
        self, limit: int, *, holder: str = "", is_up: Callable[[], bool] = lambda: True
    ) -> list[Work] | None:
        """Up to `limit` groups to label, shared as in `reserve`. Waits for any; woken by commit_generation and
        return_work."""
        work = await self._part_of(self._judges, Ask(holder, limit, is_up), self._ledger.take_generated)
        if work:
            self._taken(holder, work)
        return work

    async def lease(self, step: int) -> Lease | None:
        """The batch of `step`. Waits until the groups it needs are ready; woken by commit_labels."""
        while True:
            self._raise_failure()
            if self._ledger.is_closed:
                return None
            if (lease := self._ledger.lease(step)) is not None:
                self.progress += 1
                return lease
            if self._ledger.is_drained:
                return None
            changed = asyncio.get_running_loop().create_future()
            self._leasing[changed] = step
            try:
                await changed
            finally:
                del self._leasing[changed]

    async def keep(self, ordinal: int, attempt: int, *, head: int, salvage: Any) -> bool:
        """Keep the tokens that an engine has generated so far for a group. See `Ledger.keep`."""
        self.progress += 1
        return self._ledger.keep(ordinal, attempt, head=head, salvage=salvage)

    async def commit_generation(self, ordinal: int, attempt: int, *, head: int, nbytes: int, payload: Any) -> bool:
        """A group was generated; wakes `next_generated`. False: refused, its attempt is not the current one."""
        accepted = self._ledger.commit_generation(ordinal, attempt, head=head, nbytes=nbytes, payload=payload)
        self.progress += 1
        self._judges.deal()
        self._wake_learner()
        return accepted

    async def commit_labels(self, ordinal: int, attempt: int, *, nbytes: int, payload: Any) -> bool:
        """A group was labelled; wakes `lease`. False: refused."""
        accepted = self._ledger.commit_labels(ordinal, attempt, nbytes=nbytes, payload=payload)
        self.progress += 1
        self._wake_learner()
        return accepted

    async def requeue(self, attempts: Mapping[int, int], reason: str, *, is_loss: bool = True) -> list[int]:
        """Generate these groups again, given as {ordinal: attempt}; wakes `reserve`. Returns the ordinals that were
        accepted. One call for all groups of a lost engine, so that the waiting engines share them. is_loss: False when
        their engine left its pool; then no loss is counted and no event written."""
        requeued = self._change(
            lambda: [o for o, attempt in attempts.items() if self._ledger.requeue(o, attempt, reason, is_loss=is_loss)]
        )
        for ordinal in requeued if is_loss else ():
            self._emit("group_lost", ordinal=ordinal, attempt=attempts[ordinal], reason=reason)
        return requeued

    async def return_work(self, ordinal: int, attempt: int, reason: str, *, is_loss: bool = True) -> bool:
        """The judge of this group was lost, or left its pool (`is_loss` False): another one labels it; wakes
        `next_generated`. False: refused."""
        returned = self._change(lambda: self._ledger.return_work(ordinal, attempt, reason, is_loss=is_loss))
        if returned and is_loss:
            self._emit("judge_lost", ordinal=ordinal, attempt=attempt, reason=reason)
        return returned

    async def drop(self, ordinal: int, attempt: int, reason: str) -> bool:
        """Drop a group for good; wakes `reserve`, since its credit is free. False: refused. Raises RunFailedError when
        more groups were dropped than the run allows."""
        return self._change(lambda: self._ledger.drop(ordinal, attempt, reason))

    async def commit(self, step: int, token: int) -> bool:
        """The batch of `step` was trained."""
        return self._change(lambda: self._ledger.commit(step, token))

    async def abort(self, step: int, token: int) -> bool:
        """The step did not happen; its groups are ready again."""
        return self._change(lambda: self._ledger.abort(step, token))

    async def publish(self, version: int) -> bool:
        """`version` is live and attested on every engine."""
        return self._change(lambda: self._ledger.publish(version))

    async def close(self) -> list[int]:
        """Admit nothing more and wake all waiting workers. Returns the ordinals still held."""
        self._change(self._ledger.close)
        return list(self._ledger.held())

    async def end(self) -> None:
        """The loop has ended: stops the timer. Held groups stay, for a last checkpoint."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def counts(self) -> dict[str, int]:
        """See `Ledger.counts`."""
        return self._ledger.counts()

    async def dropped(self) -> dict[str, int]:
        """Dropped groups by reason."""
        return dict(self._ledger.dropped)

    async def cut(self) -> tuple[LedgerSnapshot, dict[int, tuple[Any, Any]]]:
        """See `Ledger.cut`: one consistent moment, regardless of the stages."""
        return self._ledger.cut()

    def restore(self, cut: LedgerSnapshot, payloads: Mapping[int, tuple[Any, Any]], *, version: int) -> None:
        """See `Ledger.restore`; before the first stage asks for anything."""
        self._ledger.restore(cut, payloads, version=version)

    def attempts(self, ordinals: Sequence[int]) -> dict[int, int]:
        """The current attempt of each of these groups that is held."""
        return self._ledger.attempts(ordinals)

    def out(self) -> list[dict[str, Any]]:
        """Groups that are checked out: by which worker, and for how many seconds."""
        return self._ledger.out(now=self._clock.now())

    def _change(self, transition: Callable[[], T]) -> T:
        """Make a transition and wake those to whom it matters. Its error also ends their waits."""
        try:
            return transition()
        except Exception as error:
            self._failure = error
            raise
        finally:
            self.progress += 1
            self._look()

    def _look(self) -> None:
        """Wake those who have work now, or all when there will be none."""
        if self._failure is not None or self._ledger.is_closed or self._ledger.is_drained:
            self.wake()
            for changed in self._leasing:
                _wake(changed)
            return
        self._engines.deal()
        self._judges.deal()
        self._wake_learner()

    def _wake_learner(self) -> None:
        for changed, step in self._leasing.items():
            if self._ledger.can_lease(step):
                _wake(changed)

    def _returned(self, state: State, holder: str) -> None:
        (self._engines if state is State.GENERATING else self._judges).returned(holder)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _part_of(self, turns: Turns, ask: Ask, take: Callable[..., list[T]]) -> list[T] | None:
        """`take` for one of the workers that ask; None: it is down."""
        ledger, part = self._ledger, 0
        taken: list[T] = []
        try:
            while True:
                self._raise_failure()
                if ledger.is_closed:
                    return []
                if not ask.is_up():
                    return None
                if part and (taken := take(part, now=self._clock.now(), holder=ask.holder)):
                    self.progress += 1
                    if self._reaper is None or self._reaper.done():
                        self._reaper = self._begin(self._expire_when_due())
                    return taken
                if ledger.is_drained:
                    return []
                part = await turns.part(ask)
        finally:
            if len(taken) < part:
                turns.deal()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _expire_when_due(self) -> None:
        while (due := self._ledger.next_expiry()) is not None:
            await asyncio.sleep(max(0.0, due - self._clock.now()))
            try:
                expired = self._ledger.expire(now=self._clock.now())
            except Exception as error:
                self._failure, expired = error, []
            for ordinal in expired:
                self._emit("group_expired", ordinal=ordinal)
            if expired or self._failure:
                self._look()


def _wake(changed: asyncio.Future[None]) -> None:
    if not changed.done():
        changed.set_result(None)
