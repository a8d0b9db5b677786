"""The loop: four stages that run at the same time. Start reading here.

    prompts ──▶ generate ──▶ label ──▶ learn ──▶ publish
                    ▲                               │
                    └──────── credits, weights ─────┘

The stages share nothing but the ledger. Each docstring names what the stage takes, what it waits for and what wakes it;
none polls. The same code runs on small fakes in unit tests and on Ray actors in a run (see `Lanes`). Synchronous
training is the same code with `target_staleness = 0` and `ledger.lockstep`.

`generate` and `label` run once for every lane of a pool. Lanes may join and leave during a run (solon.pipeline.pool).
Losing a worker does not end the run: its work goes back to the ledger, and its lane is up again once a replacement
holds the current weights (solon.recovery.guard).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from solon.clock import Clock
from solon.errors import PayloadLostError, RunFailedError, WorkerLeftError, WorkerLostError, first_cause
from solon.files.prompts import PromptSource
from solon.ledger.ledger import Grant, Lease, Work
from solon.pipeline.pool import Seat, StagePool
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
    """The workers of a run and the services that the stages use."""

    rollout: StagePool[RolloutLane]
    judges: StagePool[JudgeLane]
    learner: Learner
    ledger: LedgerPort
    prompts: PromptSource
    publication: Publication
    observer: Observer
    checkpoint: Callable[[int], Awaitable[None]] | None = None
    """Called with the number of committed steps after each step, before the next one begins."""
    is_there: Callable[[PayloadRef], Awaitable[bool]] | None = None
    """Whether a payload can still be read. None: payloads are never lost."""
    clock: Clock = field(default_factory=Clock)
    grace_s: float = 20.0
    """Seconds that unfinished groups have to finish when the run is stopped."""


@dataclass(frozen=True, slots=True)
class Publishing:
    """A trained version on its way from learn to publish."""

    manifest: Weights
    payload_ref: PayloadRef
    moved: bool


async def run_loop(lanes: Lanes, *, steps: int, min_valid: int, stop: asyncio.Event, first: int = 0) -> int:
    """Train batches `first` to `steps` - 1; returns the total number of committed steps. Setting `stop` ends the run
    after the current step.

    An error of a stage ends the run; a failed group or a lost worker does not.
    """
    versions: asyncio.Queue[Publishing | None] = asyncio.Queue(maxsize=1)
    try:
        async with asyncio.TaskGroup() as stages:
            trained = stages.create_task(learn(lanes, range(first, steps), versions, stop), name="learn")
            publishing = stages.create_task(publish(lanes, versions), name="publish")
            wake, emit = lanes.ledger.wake, lanes.observer.event
            generating = lanes.rollout.run(partial(generate, lanes), name="generate", wake=wake, emit=emit)
            labelling = lanes.judges.run(partial(label, lanes, min_valid), name="label", wake=wake, emit=emit)
            pools = [stages.create_task(generating, name="generate"), stages.create_task(labelling, name="label")]
            stages.create_task(_end(lanes, publishing, pools, lanes.grace_s), name="end")
            stopper = stages.create_task(_close_on(stop, lanes.ledger), name="stop")
            trained.add_done_callback(lambda _: stopper.cancel())
    except ExceptionGroup as failures:
        raise first_cause(failures) from None
    finally:
        await lanes.ledger.end()
    return trained.result()


async def generate(lanes: Lanes, seat: Seat[RolloutLane]) -> None:
    """Turn credits into generated groups.

    takes:     grants (ledger.reserve), as many as the engine has room for
    waits for: a credit, a free place in the engine, and the engine itself while it is being replaced
    woken by:  publish() -> ledger.publish(), a dropped or lost group, or pool.remove()
    """
    async with asyncio.TaskGroup() as running:
        while room := await seat.room():
            grants = await lanes.ledger.reserve(room, holder=seat.lane.name, is_up=lambda: seat.takes_work)
            if grants is None:  # the lane went down or is retiring
                continue
            if not grants:
                return
            seat.take(len(grants))
            running.create_task(_generate_chunk(lanes, seat, grants))


async def _generate_chunk(lanes: Lanes, seat: Seat[RolloutLane], grants: Sequence[Grant]) -> None:
    work = [Assignment(grant=grant, prompt=lanes.prompts[grant.ordinal]) for grant in grants]
    missing = {grant.ordinal: grant for grant in grants}
    for grant in grants:
        if grant.salvage:
            tokens = sum(part.num_tokens for part in grant.salvage)
            lanes.observer.event("tokens_salvaged", ordinal=grant.ordinal, tokens=tokens)
    try:
        async for report, payload_ref in seat.lane.generate(work):
            if isinstance(report, Salvage):
                await lanes.ledger.keep(report.ordinal, report.attempt, head=report.head, salvage=report)
                continue
            del missing[report.ordinal]
            seat.give(1)
            if await lanes.ledger.commit_generation(
                report.ordinal, report.attempt, head=report.head, nbytes=report.nbytes, payload=payload_ref
            ):
                lanes.observer.generated(report, payload_ref)
            else:
                lanes.observer.event("late_generation_refused", ordinal=report.ordinal, attempt=report.attempt)
        if missing:
            raise WorkerLostError(f"{seat.lane.name} ended without {len(missing)} of the groups that it was given")
    except WorkerLostError as error:
        attempts = {grant.ordinal: grant.attempt for grant in missing.values()}
        await lanes.ledger.requeue(attempts, str(error), is_loss=not isinstance(error, WorkerLeftError))
        seat.give(len(missing), finished=False)


async def label(lanes: Lanes, min_valid: int, seat: Seat[JudgeLane]) -> None:
    """Turn generated groups into labelled ones.

    takes:     a GENERATED group (ledger.next_generated), the one with the earliest deadline
    waits for: any generated group, a free place at the judge, and the judge itself while it is being replaced
    woken by:  generate() -> ledger.commit_generation(), or pool.remove()
    """
    async with asyncio.TaskGroup() as running:
        while room := await seat.room():
            work = await lanes.ledger.next_generated(room, holder=seat.lane.name, is_up=lambda: seat.takes_work)
            if work is None:  # the lane went down or is retiring
                continue
            if not work:
                return
            seat.take(len(work))
            for item in work:
                running.create_task(_label_group(lanes, min_valid, seat, item))


async def _label_group(lanes: Lanes, min_valid: int, seat: Seat[JudgeLane], item: Work) -> None:
    ordinal, attempt = item.ordinal, item.attempt
    is_finished = False
    try:
        report, payload_ref = await seat.lane.label(item)
        is_finished = True
    except WorkerLostError as error:
        is_loss = not isinstance(error, WorkerLeftError)
        await lanes.ledger.return_work(ordinal, attempt, str(error), is_loss=is_loss)
        return
    except PayloadLostError as error:
        await lanes.ledger.requeue({ordinal: attempt}, str(error))
        return
    finally:
        seat.give(1, finished=is_finished)
    if report.num_valid < min_valid:
        # The same text would get the same labels again, so another prompt replaces it.
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
            # Requested while this step trains, so that the next batch is ready when the step is committed.
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
        raise RunFailedError(f"step {lease.step} was trained, but its lease was no longer valid")
    lanes.observer.stepped(lease, report)
    if lanes.checkpoint is not None:
        await lanes.checkpoint(lease.step + 1)
    await versions.put(Publishing(manifest, payload_ref, report.moved))


async def _give_back(lanes: Lanes, lease: Lease, error: PayloadLostError) -> None:
    """The batch cannot be trained as it is: its lost groups are generated again, the others are ready again."""
    if lanes.is_there is None:
        raise error
    lost = [
        ordinal
        for ordinal, payload_refs in zip(lease.ordinals, lease.payloads, strict=True)
        if not all([await lanes.is_there(payload_ref) for payload_ref in payload_refs])
    ]
    await lanes.ledger.abort(lease.step, lease.token)
    # Every payload exists, yet the batch could not be read: trust none of it.
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


async def _end(
    lanes: Lanes, publishing: asyncio.Task[None], pools: Sequence[asyncio.Task[None]], grace_s: float
) -> None:
    """Close the pools after the last version is published; unfinished groups have `grace_s` seconds to finish."""
    await asyncio.wait([publishing])
    lanes.rollout.close()
    lanes.judges.close()
    _, late = await asyncio.wait(pools, timeout=grace_s)
    for task in late:
        task.cancel()


async def _close_on(stop: asyncio.Event, ledger: LedgerPort) -> None:
    await stop.wait()
    await ledger.close()
