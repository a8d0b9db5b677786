"""The loop: four stages that run at the same time. Start reading here.

    prompts ──▶ generate ──▶ label ──▶ learn ──▶ publish
                    ▲                               │
                    └──────── credits, weights ─────┘

The stages share nothing but the ledger. Each says what it takes, what it waits for and who wakes it; none
looks at a clock. The same page runs on small fakes in unit tests and on Ray actors in a run: see `Lanes`.
Synchronous training is the same code with `target_staleness = 0` and `ledger.lockstep`.

A worker that is lost ends nothing: what it held goes back to the ledger, and its lane is `ready` again when a
replacement holds the current weights (solon.recovery.guard).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from solon.clock import Clock
from solon.errors import PayloadLostError, RunFailedError, WorkerLostError, first_cause
from solon.files.prompts import PromptSource
from solon.ledger.ledger import Grant, Lease, Work
from solon.pipeline.publication import Publication
from solon.protocols import (
    Assignment,
    JudgeLane,
    Learner,
    LedgerPort,
    Observer,
    PayloadRef,
    RolloutLane,
)
from solon.records import Salvage, Span, StepReport, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """Who does the work, and who watches."""

    rollout: Sequence[RolloutLane]
    judges: Sequence[JudgeLane]
    learner: Learner
    ledger: LedgerPort
    prompts: PromptSource
    publication: Publication
    observer: Observer
    checkpoint: Callable[[int], Awaitable[None]] | None = None
    """Called with the number of committed steps after each of them, before the next begins."""
    is_there: Callable[[PayloadRef], Awaitable[bool]] | None = None
    """Whether a payload can still be read; None: payloads are never lost."""
    clock: Clock = field(default_factory=Clock)
    grace_s: float = 20.0
    """How long what is under way may take to end when the run is stopped."""


@dataclass(frozen=True, slots=True)
class Publishing:
    """A trained version on its way from learn to publish."""

    manifest: Weights
    payload_ref: PayloadRef
    moved: bool


async def run_loop(lanes: Lanes, *, steps: int, min_valid: int, stop: asyncio.Event, first: int = 0) -> int:
    """Train batches `first` to `steps` - 1; returns how many are committed in all. Setting `stop` ends after the step
    in hand.

    A stage that dies ends the run with its error; a failed group or a lost worker does not.
    """
    versions: asyncio.Queue[Publishing | None] = asyncio.Queue(maxsize=1)
    try:
        async with asyncio.TaskGroup() as stages:
            trained = stages.create_task(learn(lanes, range(first, steps), versions, stop), name="learn")
            publishing = stages.create_task(publish(lanes, versions), name="publish")
            workers = [
                *(stages.create_task(generate(lanes, lane), name=f"generate {lane.name}") for lane in lanes.rollout),
                *(
                    stages.create_task(label(lanes, lane, min_valid), name=f"label {lane.name}")
                    for lane in lanes.judges
                ),
            ]
            stages.create_task(_end(publishing, workers, lanes.grace_s), name="end")
            stopper = stages.create_task(_close_on(stop, lanes.ledger), name="stop")
            trained.add_done_callback(lambda _: stopper.cancel())
    except ExceptionGroup as failures:
        raise first_cause(failures) from None
    finally:
        await lanes.ledger.end()
    return trained.result()


async def generate(lanes: Lanes, lane: RolloutLane) -> None:
    """Turn credits into generated groups.

    takes:     grants (ledger.reserve), as many as the engine has room for
    waits for: a credit, a free place in the engine, and the engine itself while it is being replaced
    woken by:  publish() -> ledger.publish(), or a dropped or lost group
    """
    room = Room(lane.groups_at_once)
    async with asyncio.TaskGroup() as running:
        while True:
            free = await room.some()
            if not await lane.ready():
                return
            grants = await lanes.ledger.reserve(free, holder=lane.name, is_up=lambda: lane.is_up)
            if grants is None:
                continue
            if not grants:
                return
            room.take(len(grants))
            running.create_task(_generate_chunk(lanes, lane, grants, room))


async def _generate_chunk(lanes: Lanes, lane: RolloutLane, grants: Sequence[Grant], room: Room) -> None:
    work = [Assignment(grant=grant, prompt=lanes.prompts[grant.ordinal]) for grant in grants]
    missing = {grant.ordinal: grant for grant in grants}
    for grant in grants:
        if grant.salvage:
            tokens = sum(part.num_tokens for part in grant.salvage)
            lanes.observer.event("tokens_salvaged", ordinal=grant.ordinal, tokens=tokens)
    try:
        async for report, payload_ref in lane.generate(work):
            if isinstance(report, Salvage):
                await lanes.ledger.keep(report.ordinal, report.attempt, head=report.head, salvage=report)
                continue
            del missing[report.ordinal]
            room.give(1)
            if await lanes.ledger.commit_generation(
                report.ordinal, report.attempt, head=report.head, nbytes=report.nbytes, payload=payload_ref
            ):
                lanes.observer.generated(report, payload_ref)
            else:
                lanes.observer.event("late_generation_refused", ordinal=report.ordinal, attempt=report.attempt)
        if missing:
            raise WorkerLostError(f"{lane.name} ended without {len(missing)} of the groups that it was given")
    except WorkerLostError as error:
        await lanes.ledger.requeue({grant.ordinal: grant.attempt for grant in missing.values()}, str(error))
        room.give(len(missing))


async def label(lanes: Lanes, judge: JudgeLane, min_valid: int) -> None:
    """Turn generated groups into labelled ones.

    takes:     a GENERATED group (ledger.next_generated), the one with the earliest deadline
    waits for: any generated group, a free place at the judge, and the judge itself while it is being replaced
    woken by:  generate() -> ledger.commit_generation()
    """
    room = Room(judge.groups_at_once)
    async with asyncio.TaskGroup() as running:
        while True:
            free = await room.some()
            if not await judge.ready():
                return
            work = await lanes.ledger.next_generated(free, holder=judge.name, is_up=lambda: judge.is_up)
            if work is None:
                continue
            if not work:
                return
            room.take(len(work))
            for item in work:
                running.create_task(_label_group(lanes, judge, item, min_valid, room))


async def _label_group(lanes: Lanes, judge: JudgeLane, item: Work, min_valid: int, room: Room) -> None:
    ordinal, attempt = item.ordinal, item.attempt
    try:
        report, payload_ref = await judge.label(item)
    except WorkerLostError as error:
        await lanes.ledger.return_work(ordinal, attempt, str(error))
        return
    except PayloadLostError as error:
        await lanes.ledger.requeue({ordinal: attempt}, str(error))
        return
    finally:
        room.give(1)
    if report.num_valid < min_valid:
        # The same text would be judged the same way again, so another prompt takes its place.
        causes = ", ".join(f"{status} {count}" for status, count in report.invalid_by_status)
        reason = f"fewer than {min_valid} rollouts with a valid label ({causes})"
        accepted = await lanes.ledger.drop(ordinal, attempt, reason)
    else:
        accepted = await lanes.ledger.commit_labels(ordinal, attempt, nbytes=report.nbytes, payload=payload_ref)
    if accepted:
        lanes.observer.labelled(report, payload_ref)
    else:
        lanes.observer.event("late_label_refused", ordinal=ordinal, attempt=attempt)


async def learn(lanes: Lanes, steps: range, versions: asyncio.Queue[Publishing | None], stop: asyncio.Event) -> int:
    """Turn labelled groups into new weights.

    takes:     a lease of exactly one batch, earliest deadlines first (ledger.lease)
    waits for: the groups that must be in this batch, and a place in the publishing queue
    woken by:  label() -> ledger.commit_labels()
    """
    committed = steps.start
    leasing = asyncio.ensure_future(lanes.ledger.lease(committed))
    try:
        while committed < steps.stop and not stop.is_set():
            lease = await leasing
            if lease is None:
                break
            # Asked for while this step is trained, so that the answer is there when it is committed.
            leasing = asyncio.ensure_future(lanes.ledger.lease(committed + 1))
            try:
                trained = await lanes.learner.step(lease)
            except PayloadLostError as error:
                leasing.cancel()
                await _give_back(lanes, lease, error)
                leasing = asyncio.ensure_future(lanes.ledger.lease(committed))
                continue
            await _commit(lanes, lease, *trained, versions)
            committed += 1
        await versions.put(None)
        await lanes.ledger.close()
        if (untrained := await leasing) is not None:
            await lanes.ledger.abort(untrained.step, untrained.token)
    finally:
        leasing.cancel()
        await asyncio.gather(leasing, return_exceptions=True)
    return committed


async def _commit(
    lanes: Lanes,
    lease: Lease,
    report: StepReport,
    manifest: Weights,
    payload_ref: PayloadRef,
    versions: asyncio.Queue[Publishing | None],
) -> None:
    if not await lanes.ledger.commit(lease.step, lease.token):
        raise RunFailedError(f"step {lease.step} was trained, but its lease had been given away")
    lanes.observer.stepped(lease, report)
    if lanes.checkpoint is not None:
        await lanes.checkpoint(lease.step + 1)
    await versions.put(Publishing(manifest, payload_ref, report.moved))


async def _give_back(lanes: Lanes, lease: Lease, error: PayloadLostError) -> None:
    """The batch cannot be trained as it is: what is gone of it is generated again, the rest is ready again."""
    if lanes.is_there is None:
        raise error
    lost = [
        ordinal
        for ordinal, payload_refs in zip(lease.ordinals, lease.payloads, strict=True)
        if not all([await lanes.is_there(payload_ref) for payload_ref in payload_refs])
    ]
    await lanes.ledger.abort(lease.step, lease.token)
    # None to be found, and still it could not be read: then none of it is trusted.
    await lanes.ledger.requeue(lanes.ledger.attempts(lost or lease.ordinals), str(error))


async def publish(lanes: Lanes, versions: asyncio.Queue[Publishing | None]) -> None:
    """Turn trained weights into attested ones on every engine.

    takes:     the weights of a committed step, in order
    waits for: a new version
    woken by:  learn() -> versions.put()
    """
    while (item := await versions.get()) is not None:
        start_s = lanes.clock.wall()
        receipts = await lanes.publication.publish(item.manifest, item.payload_ref, moved=item.moved)
        await lanes.ledger.publish(item.manifest.version)
        span = Span(
            lane="publish",
            worker="publish",
            name=f"version {item.manifest.version}",
            start_s=start_s,
            end_s=lanes.clock.wall(),
        )
        lanes.observer.published(item.manifest.version, receipts, lanes.publication.max_gap, span)


class Room:
    """Free places at a worker. `await room.some()` waits until there is at least one."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._changed = asyncio.Event()
        self._changed.set()

    async def some(self) -> int:
        await self._changed.wait()
        return self._free

    def take(self, places: int) -> None:
        self._free -= places
        if self._free <= 0:
            self._changed.clear()

    def give(self, places: int) -> None:
        self._free += places
        if self._free > 0:
            self._changed.set()


async def _end(publishing: asyncio.Task[None], workers: Sequence[asyncio.Task[None]], grace_s: float) -> None:
    """When the last version is published, whoever still generates or labels has a little time to end."""
    await asyncio.wait([publishing])
    _, late = await asyncio.wait(workers, timeout=grace_s)
    for task in late:
        task.cancel()


async def _close_on(stop: asyncio.Event, ledger: LedgerPort) -> None:
    await stop.wait()
    await ledger.close()
