"""Ledger throughput: the bare state machine, behind the event loop as the stages use it, and its wake-up.

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

TRANSITIONS_PER_GROUP = 6
"""Admitted, generated, taken, labelled, leased, committed."""


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
    rows = [
        Row("state machine in process, transitions/s", statistics.median(rates), goal=">= 200000"),
        Row("behind the event loop, as stages use it, transitions/s", behind, goal=">= 2000"),
        Row("wake-up, ms: from a report to the return of who waited (reference: a bare call)", woken * 1e3, bare * 1e3),
    ]
    report("ledger", rows, options.json)


if __name__ == "__main__":
    main()
