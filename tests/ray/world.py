"""A run's lanes on real actors under a test's control: timed stand-ins that can be killed, stopped, or made to fail.

async with World(steps=6, engines=2) as world:
    world.begin()
    await world.until(lambda: world.count("leased"))
    await world.kill("learner")
    await world.ended()                      # and every invariant of a finished run was checked
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.judge import RemoteJudge
from actors.learner import RemoteLearner
from actors.rollout import RemoteRollout
from cluster.lanes import assemble_lanes, publication_for
from cluster.watchdog import waiting_tasks
from solon.errors import WorkerLostError
from solon.files.prompts import PromptSource
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import Grant, LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.loop import run_loop
from solon.pipeline.pool import Pool
from solon.pipeline.publication import PublishConfig
from solon.protocols import Assignment, GenerationReport, LabelReport
from solon.records import Feedback, Group, LoadReceipt, StepReport, Weights
from solon.recovery.guard import Guard, RecoveryConfig
from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedLearner, SupervisedRollout
from tests.standins.workers import TimedJudge, TimedLearner, TimedRollout, batch_digest, make_group, make_weights
from tests.unit.fakes import Witness, make_prompt

QUICK = RecoveryConfig(
    backoff_s=0, beat_every_s=0.2, beat_timeout_s=3, max_restarts=10, restart_timeout_s=60, grace_s=5
)
PROMPTS = [make_prompt(f"question {n} ?") for n in range(7)]


@dataclass(frozen=True)
class Fault:
    """The faults of a stand-in's process. Numbers are versions or ordinals, depending on the place."""

    dies_before_load: int = -1
    dies_after_load: int = -1
    hangs_in_load: int = -1
    dies_with_report: int = -1
    """After the report of this group was sent, before the group is."""
    start: str = ""
    """How `start` fails: "raises" or "dies"."""


SOUND = Fault()


class Engine(TimedRollout):
    def __init__(
        self, seconds: float, *, name: str, slots: int, tokens: int, fault: Fault = SOUND, pids: str = ""
    ) -> None:
        super().__init__(seconds, 0.1, name=name, slots=slots, tokens=tokens)
        self._fault = fault
        leave_pid(pids, name)

    async def start(self) -> None:
        fail_to_start(self._fault)

    async def pid(self) -> int:
        return os.getpid()

    async def pace(self, seconds: float) -> None:
        """Groups take this long from now on."""
        self._seconds = seconds

    async def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    async def stream(self, work: Sequence[Assignment]) -> AsyncIterator[GenerationReport | Group]:
        async for item in super().stream(work):
            yield item
            if isinstance(item, GenerationReport) and item.ordinal == self._fault.dies_with_report:
                await asyncio.sleep(0.5)  # so that the report is on its way
                os._exit(1)

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        fault = self._fault
        if weights.version == fault.dies_before_load:
            os._exit(1)
        if weights.version == fault.hangs_in_load:
            await asyncio.Event().wait()
        receipt = await super().load_weights(weights)
        if weights.version == fault.dies_after_load:
            os._exit(1)
        return receipt


class Judge(TimedJudge):
    def __init__(self, seconds: float, *, name: str, pids: str = "") -> None:
        super().__init__(seconds, name=name)
        leave_pid(pids, name)

    async def pid(self) -> int:
        return os.getpid()


class Learner(TimedLearner):
    def __init__(self, seconds: float, *, name: str, fault: Fault = SOUND, pids: str = "") -> None:
        super().__init__(seconds, name=name)
        self._fault = fault
        leave_pid(pids, name)

    def start(self, checkpoint: str) -> Iterator[Any]:
        fail_to_start(self._fault)
        yield from super().start(checkpoint)

    @ray.method(concurrency_group="signs")
    def pid(self) -> int:
        return os.getpid()


EngineActor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Engine)
JudgeActor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Judge)
LearnerActor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups={"signs": 1, "writes": 1})(
    Learner
)


def leave_pid(folder: str, name: str) -> None:
    """Lets observers in another process see which actors exist."""
    if folder:
        (Path(folder) / f"{name}.{os.getpid()}").touch()


def fail_to_start(fault: Fault) -> None:
    if fault.start == "dies":
        os._exit(1)
    if fault.start == "raises":
        raise RuntimeError("out of memory on the device")


@dataclass
class Watcher(Witness):
    """Records what the reliability tests check: batches, receipts, heads, and the times of events."""

    batches: list[tuple[int, ...]] = field(default_factory=list)
    receipts: list[Sequence[LoadReceipt]] = field(default_factory=list)
    generations: list[GenerationReport] = field(default_factory=list)
    labels: list[LabelReport] = field(default_factory=list)
    log: list[tuple[str, Any]] = field(default_factory=list)
    """Everything in the order of its report: ("generated", report), ("published", version), (event, fields)."""

    def generated(self, report: GenerationReport, payload_ref: Any) -> None:
        super().generated(report, payload_ref)
        self.generations.append(report)
        self.log.append(("generated", report))

    def labelled(self, report: LabelReport, payload_ref: Any) -> None:
        super().labelled(report, payload_ref)
        self.labels.append(report)

    def stepped(self, lease: Any, report: StepReport) -> None:
        super().stepped(lease, report)
        self.batches.append(lease.ordinals)

    def published(self, version: int, receipts: Any, gap: float, span: Any) -> None:
        super().published(version, receipts, gap, span)
        self.receipts.append(receipts)
        self.log.append(("published", version))

    def event(self, name: str, **fields: Any) -> None:
        super().event(name, **fields)
        self.log.append((name, fields))

    def told(self, name: str) -> list[dict[str, Any]]:
        return [fields for told, fields in self.events if told == name]


class World:
    """Lanes, guards, publication and observer as a run has them. Names: rollout-N, judge-N, learner."""

    def __init__(
        self,
        *,
        steps: int,
        batch: int = 4,
        engines: int = 1,
        judges: int = 1,
        generate_s: float = 0.05,
        label_s: float = 0.01,
        learn_s: float = 0.05,
        tokens: int = 64,
        recovery: RecoveryConfig = QUICK,
        publish_s: float = 30,
        staleness: StalenessConfig | None = None,
        ledger: Mapping[str, Any] | None = None,
        faults: Mapping[str, Sequence[Fault]] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        make_judge: Callable[[str], Any] | None = None,
        judge_places: int = 0,
        min_valid: int = 1,
        start_tries: int = 1,
    ) -> None:
        """generate_s, label_s: of one group; learn_s: of one step. faults: by worker, of its first process, its
        second, and so on; later ones are sound. options: Ray's, by worker. make_judge: another kind of judge."""
        self.steps, self.batch, self.tokens, self._min_valid = steps, batch, tokens, min_valid
        self._faults, self._options = faults or {}, options or {}
        self._start_tries = start_tries
        self.failed_starts = 0
        self.stop = asyncio.Event()
        self.watcher = watcher = Watcher()
        places = 2 * batch
        self._recovery, self.generate_s, self._label_s = recovery, generate_s, label_s
        self.engines = [self.engine(f"rollout-{n}") for n in range(engines)]
        self.judges = [
            RemoteJudge(
                partial(self._spawn, JudgeActor, f"judge-{n}", label_s)
                if make_judge is None
                else lambda _, name=f"judge-{n}": make_judge(name),
                name=f"judge-{n}",
                groups_at_once=judge_places or places,
            )
            for n in range(judges)
        ]
        self.learner = RemoteLearner(partial(self._spawn, LearnerActor, "learner", learn_s), name="learner")
        self.ledger = AsyncLedger(
            LedgerConfig(**{"batch_groups": batch, "max_losses": 100, "max_dropped_share": 1.0} | dict(ledger or {})),
            staleness or StalenessConfig(),
            total_groups=steps * batch,
        )
        self.ledger.listen(watcher.event)
        emit = watcher.event
        self.rollout = Pool([self.supervised(lane) for lane in self.engines])
        judging = Pool([SupervisedJudge(lane, Guard(lane, recovery, emit=emit)) for lane in self.judges])
        learning = SupervisedLearner(self.learner, recovery, checkpoint="", emit=emit)
        self.guards = [*(lane.guard for lane in self.rollout), *(lane.guard for lane in judging), learning.guard]
        self.publication = publication_for(
            self.rollout,
            learning,
            settings=PublishConfig(logprob_tolerance=1e-3, timeout_s=publish_s),
            initial=make_weights(0),
            recovery=recovery,
        )
        self.lanes = assemble_lanes(
            rollout=self.rollout,
            judges=judging,
            learner=learning,
            ledger=self.ledger,
            prompts=PromptSource(PROMPTS, seed=0),
            publication=self.publication,
            observer=watcher,
            checkpoint=self._checkpoint,
            recovery=recovery,
        )
        self._running: asyncio.Task[int] | None = None
        self._hold: Callable[[int], bool] = lambda step: False

    def engine(self, name: str) -> RemoteRollout:
        """An engine that has not started."""
        spawn = partial(self._spawn, EngineActor, name, self.generate_s, slots=self.batch, tokens=self.tokens)
        return RemoteRollout(spawn, name=name, groups_at_once=2 * self.batch)

    def supervised(self, engine: RemoteRollout) -> SupervisedRollout:
        return SupervisedRollout(engine, Guard(engine, self._recovery, emit=self.watcher.event))

    async def grow(self, name: str) -> None:
        """Another engine joins while the loop runs."""
        engine = self.engine(name)
        self.engines.append(engine)
        await engine.start()
        lane = self.supervised(engine)
        await self.rollout.add(lane)
        self.guards.append(lane.guard)

    def hold(self, condition: Callable[[int], Any]) -> None:
        """No step begins while this is true of the number of committed ones, so that the run does not end before the
        recovery under test."""
        self._hold = condition

    async def _checkpoint(self, step: int) -> None:
        while self._hold(step):  # noqa: ASYNC110 - whatever the test waits for
            await asyncio.sleep(0.005)

    def _spawn(self, actor: Any, name: str, seconds: float, made: int, **arguments: Any) -> Any:
        faults = self._faults.get(name, ())
        if made < len(faults):
            arguments["fault"] = faults[made]
        return actor.options(**self._options.get(name, {})).remote(seconds, name=name, **arguments)

    async def __aenter__(self) -> World:
        starting = [self._up(lane.start, lane.restart) for lane in (*self.engines, *self.judges)]
        learner = self._up(self.learner.start, partial(self.learner.restart_from, ""))
        (manifest, payload_ref), *_ = await asyncio.gather(learner, *starting)
        await self._up(partial(self.publication.verify, manifest, payload_ref), self._all_again(manifest, payload_ref))
        for guard in self.guards:
            guard.start()
        return self

    async def _up(self, start: Callable[[], Any], again: Callable[[], Any]) -> Any:
        """The result of a start. A run whose start fails ends at once; this one may be told to try again."""
        for _ in range(self._start_tries - 1):
            try:
                return await start()
            except WorkerLostError:
                self.failed_starts += 1
                start = again
        return await start()

    def _all_again(self, manifest: Weights, payload_ref: Any) -> Callable[[], Any]:
        async def again() -> None:
            for lane in self.engines:
                await self._up(lane.restart, lane.restart)
            await self.publication.verify(manifest, payload_ref)

        return again

    async def __aexit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await asyncio.gather(*(guard.close() for guard in self.guards))
        for worker in (*self.engines, *self.judges, self.learner):
            worker.end()

    def begin(self) -> None:
        self._running = asyncio.ensure_future(
            run_loop(self.lanes, steps=self.steps, min_valid=self._min_valid, stop=self.stop)
        )

    async def ended(self, *, timeout_s: float = 60, dropped: int | None = 0, exact: bool = True) -> None:
        """Wait for the end, and check every invariant of a good end. dropped: the number of dropped groups; None: any
        number. exact: labels are the stand-in's."""
        assert self._running is not None
        try:
            assert await asyncio.wait_for(asyncio.shield(self._running), timeout_s) == self.steps
        except TimeoutError:
            raise AssertionError(self.standing()) from None
        self.check(dropped=dropped, exact=exact)

    def standing(self) -> str:
        """The state of the ledger, of every worker and of every task: for a test that does not end."""
        workers = [guard.status() for guard in self.guards]
        seen = [f"{name} {fields}"[:200] for name, fields in self.watcher.events]
        lines = (self.ledger._ledger.counts(), self.ledger.out(), workers, *seen, *waiting_tasks())
        return "\n".join(str(line) for line in lines)

    async def failed(self, *, timeout_s: float = 30) -> Exception:
        """Wait for an end that is an error; returns it."""
        assert self._running is not None
        await asyncio.wait({self._running}, timeout=timeout_s)
        assert self._running.done(), self.standing()
        (outcome,) = await asyncio.gather(self._running, return_exceptions=True)
        assert isinstance(outcome, Exception), outcome
        return outcome

    def check(self, *, dropped: int | None = 0, exact: bool = True) -> None:
        counts, watcher = self.ledger._ledger.counts(), self.watcher
        trained = [ordinal for batch in watcher.batches for ordinal in batch]
        # Exactly once, nothing lost, nothing invented.
        assert len(trained) == len(set(trained)) == self.steps * self.batch == counts["committed"]
        assert counts["held"] == 0
        assert len(self.told("group_dropped")) == counts["dropped"]
        assert dropped is None or counts["dropped"] == dropped
        assert counts["admitted"] == counts["committed"] + counts["dropped"]
        if exact:
            # The learner received the records bit by bit: each ordinal with its own tokens, prompt, feedback.
            expected = make_weights(self.steps, self.digest(watcher.batches)).fingerprint
            assert {receipt.fingerprint for receipt in watcher.receipts[-1]} == {expected}
        assert watcher.versions == list(range(1, self.steps + 1))
        assert max(watcher.staleness) <= self.ledger._ledger.staleness.max_staleness

    def digest(self, batches: Sequence[Sequence[int]]) -> str:
        """The digest of a learner that was trained on these."""
        digest, prompts = "stand-in", PromptSource(PROMPTS, seed=0)
        for batch in batches:
            payloads: list[Any] = []
            for ordinal in batch:
                payloads += [
                    make_group(Grant(ordinal, 0, 0), prompts[ordinal], 0, tokens=self.tokens),
                    Feedback(ordinal=ordinal, attempt=0, rewards_G=(1.0,), labels=()),
                ]
            digest = batch_digest(digest, payloads)
        return digest

    # -- observation and intervention ----------------------------------------------------------------------------------

    def count(self, state: str) -> int:
        return self.ledger._ledger.counts()[state]

    def told(self, name: str) -> list[dict[str, Any]]:
        return self.watcher.told(name)

    async def until(self, condition: Callable[[], Any], *, timeout_s: float = 60) -> None:
        """Wait for a condition. Fails when the run ends before."""
        assert self._running is not None
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._running.done():
                raise AssertionError(f"the run ended before that: {self._running}")
            assert time.monotonic() < deadline, self.standing()
            await asyncio.sleep(0.005)

    def worker(self, name: str) -> Any:
        return next(w for w in (*self.engines, *self.judges, self.learner) if w.name == name)

    async def pid(self, name: str) -> int:
        pid: int = await self.worker(name).actor.pid.remote()
        return pid

    async def kill(self, name: str) -> int:
        """SIGKILL; returns the id of the killed process."""
        pid = await self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid


def is_alive(pid: int) -> bool:
    """Whether a process exists and is more than an entry for its parent to read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int, *, timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while is_alive(pid):  # noqa: ASYNC110 - another process' end has no event here
            await asyncio.sleep(0.05)
