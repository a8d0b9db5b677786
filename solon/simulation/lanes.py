"""Simulated engines and judges: processes that take time, and die now and then.

They implement `RolloutProcess` and `JudgeProcess`, so that the guards of a real run replace them; in a scenario without
failures the loop uses them without guards, as `RolloutLane` and `JudgeLane`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from solon.errors import WorkerLostError
from solon.feedback.interfaces import Item
from solon.ledger.ledger import Work
from solon.protocols import Assignment, GenerationReport, LabelReport, PayloadRef
from solon.records import Feedback, Group, LoadReceipt, Prompt, Salvage, Span, Weights
from solon.simulation.draws import GroupLengths, Lifetimes
from solon.simulation.scenario import Scenario
from solon.simulation.stations import Rate, Station
from solon.simulation.virtual_time import VirtualHandle, VirtualLoop, running_loop
from solon.verdicts import Verdict


class Mortal:
    """A process that may die. Its unfinished calls then end with WorkerLostError, as those of a dead actor do."""

    def __init__(self, name: str, scenario: Scenario, loop: VirtualLoop, *, mtbf_s: float, restart_s: float) -> None:
        self.name = name
        self._loop = loop
        self._restart_s = restart_s
        self._absence_s = 0.0
        """Until a node has room for the next process."""
        self._causes = [(Lifetimes(scenario, name, mtbf_s), 0.0, "its process died")]
        self._calls: dict[asyncio.Future[Any], None] = {}  # in the order of their beginnings
        self._death: VirtualHandle | None = None
        self._dead_of = ""

    def also_dies(self, lifetimes: Lifetimes, absence_s: float, cause: str) -> None:
        """Another cause of death, after which the worker has no node for `absence_s` seconds."""
        self._causes.append((lifetimes, absence_s, cause))

    def live(self) -> None:
        """A new process begins."""
        self._dead_of = ""
        draws = [(lifetimes.draw_s(), absence_s, cause) for lifetimes, absence_s, cause in self._causes]
        life_s, absence_s, cause = min(draws)
        if math.isfinite(life_s):
            self._death = self._loop.call_at(self._loop.time() + life_s, self._die, absence_s, cause)

    async def restart(self, placed: Callable[[], None]) -> None:
        """See `solon.recovery.guard.Restartable`."""
        self.end()
        if self._absence_s:
            await asyncio.sleep(self._absence_s)
        self._absence_s = 0.0
        placed()
        await asyncio.sleep(self._restart_s)
        self.live()

    async def heartbeat(self) -> float:
        """See `solon.recovery.guard.Restartable`."""
        self.check()
        return 0.0

    def end(self) -> None:
        """The process ends."""
        if self._death is not None:
            self._death.cancel()
        self._die(self._absence_s, self._dead_of or "it was ended")

    def check(self) -> None:
        """Raises WorkerLostError when the process is dead."""
        if self._dead_of:
            raise WorkerLostError(f"{self.name}: {self._dead_of}")

    async def wait(self, future: asyncio.Future[Any]) -> Any:
        """The result of a future. Raises WorkerLostError when the process dies first."""
        self._calls[future] = None
        try:
            return await future
        finally:
            self._calls.pop(future, None)

    async def work(self, seconds: float) -> None:
        """Passes time. Raises WorkerLostError when the process dies meanwhile."""
        done = self._loop.create_future()
        timer = self._loop.call_at(self._loop.time() + seconds, _finish, done)
        try:
            await self.wait(done)
        finally:
            timer.cancel()

    def lose(self) -> None:
        """What the process held is gone."""

    def _die(self, absence_s: float, cause: str) -> None:
        self._dead_of, self._absence_s = cause, absence_s
        self.lose()
        for call in list(self._calls):
            if not call.done():
                call.set_exception(WorkerLostError(f"{self.name}: {cause}"))


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class Unguarded(Mortal):
    """What a lane without a guard answers: it is always up."""

    incarnation = 0

    @property
    def is_up(self) -> bool:
        """See `Lane.is_up`."""
        return not self._dead_of

    async def ready(self) -> bool:
        """See `Lane.ready`."""
        return True

    def enlist(self, **_: Any) -> None:
        """See `Lane.enlist`: it is never down."""

    def watch(self) -> None:
        """See `Lane.watch`."""

    async def retire(self) -> None:
        """See `Lane.retire`."""
        self.end()

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """See `RolloutLane.lost`: nothing replaces it."""
        raise error


class Hours:
    """The spans of one worker that holds many groups at once: from the last report, or since it has work, to now."""

    def __init__(self, lane: Any, worker: str, loop: VirtualLoop) -> None:
        self._lane = lane
        self._worker = worker
        self._loop = loop
        self._since_s = 0.0

    def begin(self) -> None:
        """It has work from now on."""
        self._since_s = self._loop.now_s

    def report(self) -> tuple[Span, ...]:
        """The time since the last report."""
        start_s, self._since_s = self._since_s, self._loop.now_s
        return (Span(lane=self._lane, worker=self._worker, name="", start_s=start_s, end_s=self._since_s),)


class _Stream:
    """The finished groups of one `generate` call that were not yet taken."""

    __slots__ = ("done", "waiter")

    def __init__(self) -> None:
        self.done: deque[GenerationReport] = deque()
        self.waiter: asyncio.Future[None] | None = None


class SimulatedEngine(Unguarded):
    """One rollout engine."""

    def __init__(self, name: str, scenario: Scenario, lengths: GroupLengths, rate: Rate) -> None:
        loop, failures = running_loop(), scenario.failures
        super().__init__(name, scenario, loop, mtbf_s=failures.rollout_mtbf_s, restart_s=failures.rollout_restart_s)
        self.also_dies(
            Lifetimes(scenario, f"{name} spot", failures.spot_mtbf_s), failures.spot_return_s, "its node was taken away"
        )
        self.groups_at_once = scenario.slots
        self._scenario = scenario
        self._bytes_per_token = scenario.bytes_per_token
        self._lengths = lengths
        self._station = Station(rate, loop, self._finished)
        self._hours = Hours("generate", name, loop)
        self._version = 0
        self.live()

    def live(self) -> None:
        """A new process begins, with the weights that the run began with."""
        self._version = 0
        super().live()

    async def generate(
        self, work: Sequence[Assignment]
    ) -> AsyncIterator[tuple[GenerationReport | Salvage, PayloadRef]]:
        """See `RolloutLane.generate`."""
        self.check()
        stream, scenario, lengths = _Stream(), self._scenario, self._lengths
        rate = scenario.prefill_tokens_per_s
        delay_s = scenario.prompt_tokens / rate if rate else 0.0
        if not len(self._station):
            self._hours.begin()
        for item in work:
            ordinal = item.grant.ordinal
            longest = lengths.longest(ordinal)
            self._station.enter(
                (stream, ordinal, item.grant.attempt, self._version),
                work=longest,
                load=lengths.total(ordinal) / longest,
                delay_s=delay_s,
            )
        for _ in work:
            while not stream.done:
                waiter = stream.waiter = self._loop.create_future()
                self._calls[waiter] = None  # as in `wait`, without a call for each group
                try:
                    await waiter
                finally:
                    del self._calls[waiter]
            yield stream.done.popleft(), None

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        """See `RolloutLane.load_weights`."""
        self.check()
        scenario = self._scenario
        await self.work(scenario.publish_s - scenario.publish_pause_s)
        if scenario.publish_pause_s:
            self._station.pause()
            try:
                await self.work(scenario.publish_pause_s)
            finally:
                self._station.resume()
        self._version = weights.version
        return LoadReceipt(
            engine=self.name,
            version=weights.version,
            fingerprint=weights.fingerprint,
            checksum=f"{self.name} {weights.fingerprint}",
            canary_logprobs=weights.canary_logprobs,
            pause_s=scenario.publish_pause_s,
        )

    async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
        """See `RolloutProcess.answer`. Raises NotImplementedError: a simulation evaluates nothing."""
        raise NotImplementedError("a simulated engine writes no text")

    def lose(self) -> None:
        """See `Mortal.lose`."""
        self._station.clear()

    def _finished(self, items: list[tuple[_Stream, int, int, int]]) -> None:
        spans = self._hours.report()
        for stream, ordinal, attempt, head in items:
            tokens = self._lengths.total(ordinal)
            nbytes = int(tokens * self._bytes_per_token)
            stream.done.append(
                GenerationReport(
                    ordinal=ordinal, attempt=attempt, head=head, num_tokens=tokens, nbytes=nbytes, spans=spans
                )
            )
            spans = ()
            if stream.waiter is not None and not stream.waiter.done():
                stream.waiter.set_result(None)


class SimulatedJudge(Unguarded):
    """One judge."""

    def __init__(self, name: str, scenario: Scenario, rate: Rate) -> None:
        loop, failures = running_loop(), scenario.failures
        super().__init__(name, scenario, loop, mtbf_s=failures.judge_mtbf_s, restart_s=failures.judge_restart_s)
        self.groups_at_once = scenario.judge_slots
        self._size = scenario.group_size
        self._station = Station(rate, loop, self._finished)
        self._hours = Hours("label", name, loop)
        self.live()

    async def label(self, work: Work) -> tuple[LabelReport, PayloadRef]:
        """See `JudgeLane.label`."""
        self.check()
        if not len(self._station):
            self._hours.begin()
        done: asyncio.Future[tuple[Span, ...]] = self._loop.create_future()
        self._station.enter(done, work=1.0, load=1.0)
        self._calls[done] = None  # as in `wait`
        try:
            spans = await done
        finally:
            del self._calls[done]
        return (
            LabelReport(
                ordinal=work.ordinal,
                attempt=work.attempt,
                num_rollouts=self._size,
                num_valid=self._size,
                reward_mean=0.0,
                labels=self._size,
                invalid=0,
                questions=self._size,
                cache_hits=0,
                prompt_tokens=0,
                cached_tokens=0,
                nbytes=0,
                spans=spans,
            ),
            None,
        )

    async def label_group(self, group: Group) -> Feedback:
        """See `JudgeProcess.label_group`. Raises NotImplementedError: a simulation evaluates nothing."""
        raise NotImplementedError("a simulated judge reads no text")

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """See `JudgeProcess.judge_fresh`. Raises NotImplementedError: a simulation audits nothing."""
        raise NotImplementedError("a simulated judge reads no text")

    def lose(self) -> None:
        """See `Mortal.lose`."""
        self._station.clear()

    def _finished(self, items: list[asyncio.Future[tuple[Span, ...]]]) -> None:
        spans = self._hours.report()
        for done in items:
            if not done.done():
                done.set_result(spans)
            spans = ()
