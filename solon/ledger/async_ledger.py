"""The ledger behind an event loop: the same transitions, plus waiting. Plain asyncio.

A stage without work waits on one condition; the transition that gives it work wakes it. No stage polls. The only
timer takes groups back from an engine or judge that holds them for longer than `lease_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from solon.clock import Clock
from solon.ledger.ledger import Grant, Lease, Ledger, LedgerConfig, Work
from solon.ledger.shares import Ask
from solon.ledger.snapshot import LedgerSnapshot
from solon.ledger.staleness import StalenessConfig

T = TypeVar("T")


class _DownError(Exception):
    """The worker that waited is down."""


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
        self._changed = asyncio.Condition()
        self._reaper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._engines: list[Ask] = []
        self._judges: list[Ask] = []
        self._failure: Exception | None = None
        self._emit: Callable[..., None] = lambda name, **fields: None
        self.progress = 0

    def listen(self, emit: Callable[..., None]) -> None:
        """`emit(name, **fields)` is called for every group that is tried again or dropped, as it happens."""
        self._emit = emit
        self._ledger.on_drop = lambda ordinal, reason: emit("group_dropped", ordinal=ordinal, reason=reason)

    def hold_back(self, unwritten_bytes: int) -> None:
        """This many bytes of payloads are kept until they are written: they count against the byte budget.

        Wakes workers that wait for a credit when the number falls."""
        was_over, fell = self._ledger.is_over_budget, unwritten_bytes < self._ledger.unwritten_bytes
        self._ledger.unwritten_bytes = unwritten_bytes
        if was_over and fell:
            self.wake()

    def wake(self) -> None:
        """Makes all waiting workers check again whether they have work and are up."""
        self._begin(self._wake())

    async def reserve(
        self, limit: int, *, holder: str = "", is_up: Callable[[], bool] = lambda: True
    ) -> list[Grant] | None:
        """Permission for up to `limit` groups. Waits for a credit; woken by publish, requeue or drop.

        Engines that wait together share the available groups, so that none is idle while another has more than it
        decodes. None: the holder went down meanwhile, and must ask again when it is up.
        """
        return await self._among(self._engines, Ask(holder, limit, is_up), self._ledger.reserve)

    async def next_generated(
        self, limit: int, *, holder: str = "", is_up: Callable[[], bool] = lambda: True
    ) -> list[Work] | None:
        """Up to `limit` groups to label, shared as in `reserve`. Waits for any; woken by commit_generation and
        return_work."""
        return await self._among(self._judges, Ask(holder, limit, is_up), self._ledger.take_generated)

    async def lease(self, step: int) -> Lease | None:
        """The batch of `step`. Waits until the groups it needs are ready; woken by commit_labels."""
        return await self._until(lambda: self._ledger.lease(step))

    async def keep(self, ordinal: int, attempt: int, *, head: int, salvage: Any) -> bool:
        """Keep the tokens that an engine has generated so far for a group. See `Ledger.keep`."""
        return await self._change(lambda: self._ledger.keep(ordinal, attempt, head=head, salvage=salvage))

    async def commit_generation(self, ordinal: int, attempt: int, *, head: int, nbytes: int, payload: Any) -> bool:
        """A group was generated; wakes `next_generated`. False: refused, its attempt is not the current one."""
        return await self._change(
            lambda: self._ledger.commit_generation(ordinal, attempt, head=head, nbytes=nbytes, payload=payload)
        )

    async def commit_labels(self, ordinal: int, attempt: int, *, nbytes: int, payload: Any) -> bool:
        """A group was labelled; wakes `lease`. False: refused."""
        return await self._change(lambda: self._ledger.commit_labels(ordinal, attempt, nbytes=nbytes, payload=payload))

    async def requeue(self, attempts: Mapping[int, int], reason: str, *, is_loss: bool = True) -> list[int]:
        """Generate these groups again, given as {ordinal: attempt}; wakes `reserve`. Returns the ordinals that were
        accepted. One call for all groups of a lost engine, so that the waiting engines share them. is_loss: False when
        their engine left its pool; then no loss is counted and no event written."""
        requeued = await self._change(
            lambda: [o for o, attempt in attempts.items() if self._ledger.requeue(o, attempt, reason, is_loss=is_loss)]
        )
        for ordinal in requeued if is_loss else ():
            self._emit("group_lost", ordinal=ordinal, attempt=attempts[ordinal], reason=reason)
        return requeued

    async def return_work(self, ordinal: int, attempt: int, reason: str, *, is_loss: bool = True) -> bool:
        """The judge of this group was lost, or left its pool (`is_loss` False): another one labels it; wakes
        `next_generated`. False: refused."""
        returned = await self._change(lambda: self._ledger.return_work(ordinal, attempt, reason, is_loss=is_loss))
        if returned and is_loss:
            self._emit("judge_lost", ordinal=ordinal, attempt=attempt, reason=reason)
        return returned

    async def drop(self, ordinal: int, attempt: int, reason: str) -> bool:
        """Drop a group for good; wakes `reserve`, since its credit is free. False: refused. Raises RunFailedError when
        more groups were dropped than the run allows."""
        return await self._change(lambda: self._ledger.drop(ordinal, attempt, reason))

    async def commit(self, step: int, token: int) -> bool:
        """The batch of `step` was trained."""
        return await self._change(lambda: self._ledger.commit(step, token))

    async def abort(self, step: int, token: int) -> bool:
        """The step did not happen; its groups are ready again."""
        return await self._change(lambda: self._ledger.abort(step, token))

    async def publish(self, version: int) -> bool:
        """`version` is live and attested on every engine."""
        return await self._change(lambda: self._ledger.publish(version))

    async def close(self) -> list[int]:
        """Admit nothing more and wake all waiting workers. Returns the ordinals still held."""
        await self._change(self._ledger.close)
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
        async with self._changed:
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

    async def _change(self, transition: Callable[[], T]) -> T:
        """Make a transition and wake all waiting workers. Its error also ends their waits."""
        async with self._changed:
            try:
                return transition()
            except Exception as error:
                self._failure = error
                raise
            finally:
                self.progress += 1
                self._changed.notify_all()

    async def _among(self, asking: list[Ask], ask: Ask, take: Callable[..., list[T]]) -> list[T] | None:
        """`take` for one of the workers that ask; None: it is down."""

        def attempt() -> list[T]:
            if not ask.is_up():
                raise _DownError
            others = (other for other in asking if other is not ask and other.is_up())
            return take(ask.room, now=self._clock.now(), holder=ask.holder, others=others)

        asking.append(ask)
        try:
            await asyncio.sleep(0)  # workers that ask at the same moment all take part in the first share
            return await self._until(attempt) or []
        except _DownError:
            return None
        finally:
            asking.remove(ask)
            # The others may have left a share for it; without it, the share is theirs.
            if asking and self._ledger.num_reservable + self._ledger.num_labelable:
                self.wake()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _until(self, attempt: Callable[[], T]) -> T | None:
        """Try now and after every change, until there is a result or the ledger has nothing left to give."""
        async with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._ledger.is_closed:
                    return None
                if result := attempt():
                    self.progress += 1
                    self._watch_expiry()
                    return result
                if self._ledger.is_drained:
                    return None
                await self._changed.wait()

    def _watch_expiry(self) -> None:
        if self._reaper is None or self._reaper.done():
            self._reaper = self._begin(self._expire_when_due())

    async def _expire_when_due(self) -> None:
        while (due := self._ledger.next_expiry()) is not None:
            await asyncio.sleep(max(0.0, due - self._clock.now()))
            async with self._changed:
                try:
                    expired = self._ledger.expire(now=self._clock.now())
                except Exception as error:
                    self._failure, expired = error, []
                for ordinal in expired:
                    self._emit("group_expired", ordinal=ordinal)
                if expired or self._failure:
                    self._changed.notify_all()
