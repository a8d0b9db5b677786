"""Ledger throughput: the bare state machine, behind the event loop as the stages use it, within the whole loop with
hundreds of lanes, and its wake-up.

python benchmarks/ledger.py [--quick] [--json PATH]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import Ledger, LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.loop import run_loop
from tests.unit.fakes import FakeJudge, FakeRollout, make_lanes

TRANSITIONS_PER_GROUP = 6
"""Admitted, generated, taken, labelled, leased, committed."""
MOMENT_S = 0.05
"""Seconds in which a fake engine or judge answers."""


def in_process(groups: int, *, batch: int) -> float:
    """Transitions per second of the bare state machine, every group from admission to commit."""
    ledger = Ledger(LedgerConfig(batch_groups=batch), StalenessConfig(target_staleness=1), total_groups=groups)
    start = time.perf_counter()
    for step in range(groups // batch):
        for grant in ledger.reserve(10 * batch, now=0.0):
            ledger.commit_generation(grant.ordinal, grant.attempt, head=grant.version, nbytes=1000, payload=None)
        for work in ledger.take_generated(10 * batch, now=0.0):
            ledger.commit_labels(work.ordinal, work.attempt, nbytes=100, payload=None)
        lease = ledger.lease(step)
        assert lease is not None
        ledger.commit(step, lease.token)
        ledger.publish(step + 1)
    assert ledger.committed == groups
    return TRANSITIONS_PER_GROUP * groups / (time.perf_counter() - start)


async def behind_the_loop(groups: int, *, batch: int, workers: int) -> float:
    """Transitions per second when concurrent stages drive the ledger of a run."""
    ledger = make_ledger(batch, groups)
    await ledger.counts()
    start = time.perf_counter()

    async def generate() -> None:
        while grants := await ledger.reserve(batch):
            await asyncio.gather(
                *(
                    ledger.commit_generation(g.ordinal, g.attempt, head=g.version, nbytes=1000, payload=None)
                    for g in grants
                )
            )

    async def label() -> None:
        while work := await ledger.next_generated(batch):
            await asyncio.gather(*(ledger.commit_labels(w.ordinal, w.attempt, nbytes=100, payload=None) for w in work))

    async def learn() -> None:
        for step in range(groups // batch):
            lease = await ledger.lease(step)
            assert lease is not None
            await ledger.commit(step, lease.token)
            await ledger.publish(step + 1)

    async with asyncio.TaskGroup() as stages:
        for _ in range(workers):
            stages.create_task(generate())
            stages.create_task(label())
        stages.create_task(learn())
    return TRANSITIONS_PER_GROUP * groups / (time.perf_counter() - start)


async def many_lanes(groups: int, *, batch: int, lanes: int) -> tuple[float, float]:
    """Transitions per second of the whole loop with this many engines and as many judges, in real time, on fakes that
    answer after a moment: tasks, pools, publication and observer included. And the cores that 2,000 a second need."""
    staleness = StalenessConfig(target_staleness=2, max_staleness=4)
    parts, _ = make_lanes(
        batch_groups=batch,
        steps=groups // batch,
        staleness=staleness,
        rollout=[FakeRollout(name=f"rollout-{number}", delay_s=MOMENT_S) for number in range(lanes)],
        judges=[FakeJudge(name=f"judge-{number}", delay_s=MOMENT_S) for number in range(lanes)],
    )
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    steps = await run_loop(parts, steps=groups // batch, min_valid=1, stop=asyncio.Event())
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    assert steps == groups // batch
    return TRANSITIONS_PER_GROUP * groups / wall_s, 2000 * cpu_s / (TRANSITIONS_PER_GROUP * groups)


async def wake_up(rounds: int) -> tuple[float, float]:
    """Median seconds from a report to the return of the waiting call, and of one bare call."""
    ledger = make_ledger(1, rounds)
    await ledger.counts()
    woken, bare = [], []
    for step in range(rounds):
        (grant,) = await ledger.reserve(1)
        waiting = asyncio.ensure_future(ledger.next_generated(1))
        await asyncio.sleep(0.01)
        start = time.perf_counter()
        reporting = asyncio.ensure_future(
            ledger.commit_generation(grant.ordinal, 0, head=grant.version, nbytes=1, payload=None)
        )
        await waiting
        woken.append(time.perf_counter() - start)
        await reporting
        await ledger.commit_labels(grant.ordinal, 0, nbytes=1, payload=None)
        lease = await ledger.lease(step)
        assert lease is not None
        start = time.perf_counter()
        await ledger.commit(step, lease.token)
        bare.append(time.perf_counter() - start)
        await ledger.publish(step + 1)
    return statistics.median(woken), statistics.median(bare)


def make_ledger(batch: int, groups: int) -> AsyncLedger:
    """A ledger as a run has it."""
    return AsyncLedger(LedgerConfig(batch_groups=batch), StalenessConfig(target_staleness=1), total_groups=groups)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    scale = 1 if options.quick else 5
    rates = [in_process(19_200 * scale, batch=64) for _ in range(3)]
    behind = asyncio.run(behind_the_loop(6400 * scale, batch=64, workers=2))
    woken, bare = asyncio.run(wake_up(200 * scale))
    lanes = 512
    of_many, cores = asyncio.run(many_lanes(2048 * scale, batch=1024, lanes=lanes))
    rows = [
        Row("state machine in process, transitions/s", statistics.median(rates), goal=">= 200000"),
        Row("behind the event loop, as stages use it, transitions/s", behind, goal=">= 2000"),
        Row(f"the whole loop with {lanes} engines and {lanes} judges, transitions/s", of_many, goal=">= 2000"),
        Row("the same: cores of the driver at 2,000 transitions/s", cores, goal="<= 1"),
        Row("wake-up, ms: from a report to the return of who waited (reference: a bare call)", woken * 1e3, bare * 1e3),
    ]
    report("ledger", rows, options.json)


if __name__ == "__main__":
    main()
