"""Pools that follow the load against pools of every fixed size: throughput, cost in lanes, and what was lost.

    python benchmarks/elasticity.py [--quick] [--json PATH] [--only virtual|ray]

Virtual: real loop, ledger, pools and guards in simulated time, with stages that only wait; hours of a run in seconds.
Ray: the same on real actors that sleep, with engines that become slow and fast again.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from tests.standins.elastic import Loss, Outcome, Scenario, Timing, simulate

LIGHT, HEAVY = Timing(0, 4, 0.3, 20), Timing(0, 16, 2.4, 20)
SIZES = (1, 2, 3)


def scenarios(*, quick: bool) -> dict[str, Scenario]:
    """Runs whose pools may have 1 to 3 lanes each."""
    steps, period = (130, 900.0) if quick else (520, 3600.0)
    changing = (LIGHT, replace(HEAVY, begins_s=period), replace(LIGHT, begins_s=2 * period))
    losses = tuple(
        Loss(at_s, "judge" if number % 3 == 2 else "rollout", (0, 30, 120)[number % 3], (60, 400)[number % 2])
        for number, at_s in enumerate(itertools.takewhile(lambda at: at < 3 * period, itertools.count(200.0, 150.0)))
    )
    base = Scenario(steps=steps, timings=(LIGHT,), most=(3, 3), rooms=(4, 4))
    return {
        "light": base,
        "heavy": replace(base, timings=(HEAVY,)),
        "changing": replace(base, timings=changing),
        "changing, machines lost": replace(base, timings=changing, losses=losses),
    }


def virtual_rows(*, quick: bool) -> list[Row]:
    rows = []
    for name, scenario in scenarios(quick=quick).items():
        # `simulate` checks that each group was trained once, that none was dropped, and the staleness bound.
        elastic = simulate(scenario)
        fixed = {
            sizes: simulate(replace(scenario, sizes=sizes, most=sizes)) for sizes in itertools.product(SIZES, SIZES)
        }
        best = max(fixed.values(), key=lambda outcome: outcome.steps_per_hour)
        quickest = best.steps_per_hour
        frugal = min((o for o in fixed.values() if o.steps_per_hour >= 0.95 * quickest), key=lanes)
        print(
            f"{name}: sizes {changes(elastic, 'rollout')} engines, {changes(elastic, 'judge')} judges; {told(elastic)}"
        )
        rows += [
            Row(f"{name}: steps/h, elastic (reference: best fixed)", elastic.steps_per_hour, quickest),
            Row(f"{name}: elastic over best fixed", elastic.steps_per_hour / quickest, goal=">= 0.9"),
            Row(f"{name}: mean lanes, elastic (reference: smallest fixed within 5 %)", lanes(elastic), lanes(frugal)),
            Row(f"{name}: largest staleness", max(elastic.witness.staleness), goal=f"<= {scenario.bound}"),
            Row(f"{name}: groups lost or trained twice", unaccounted(elastic), goal="<= 0"),
        ]
    return rows


def ray_rows(*, quick: bool) -> list[Row]:
    from cluster.launch import cluster
    from tests.standins.elastic_on_ray import changing_load

    steps, slow = (200, (15, 60)) if quick else (400, (40, 240))
    with cluster(dashboard=False):
        options = {"steps": steps, "slow_from": slow[0], "slow_to": slow[1]}
        elastic = asyncio.run(changing_load(**options))
        fixed = asyncio.run(changing_load(**options, least=3, most=3))
    sizes = [size for _, size in elastic.sizes]
    print(f"Ray: engines {sizes}")
    ended = [seen.steps[-1][0] for seen in (elastic, fixed)]
    lost = sum(name in ("group_lost", "group_dropped") for name, _ in elastic.events)
    return [
        Row("Ray: steps/s, elastic (reference: always 3 engines)", steps / ended[0], steps / ended[1]),
        Row("Ray: elastic over always 3 engines", ended[1] / ended[0], goal=">= 0.9"),
        Row("Ray: most engines", max(sizes), goal=">= 2"),
        Row("Ray: engines at the end", sizes[-1], goal="<= 1"),
        Row("Ray: groups lost", lost, goal="<= 0"),
    ]


def lanes(outcome: Outcome) -> float:
    """Mean number of engines and judges together."""
    return (outcome.lane_seconds("rollout") + outcome.lane_seconds("judge")) / outcome.seconds


def changes(outcome: Outcome, pool: str) -> list[int]:
    """The sizes that a pool had, in order."""
    sizes = [size for _, name, size in outcome.sizes if name == pool]
    return [size for size, _ in itertools.groupby(sizes)]


def told(outcome: Outcome) -> dict[str, int]:
    """How often each kind of change happened."""
    names = ("resized", "worker_draining", "worker_lost", "lane_joined", "lane_left", "lane_not_added")
    return {name: len(outcome.told(name)) for name in names}


def unaccounted(outcome: Outcome) -> int:
    """Groups admitted and neither trained once nor dropped with a reason."""
    trained = len(outcome.trained)
    return abs(outcome.counts["admitted"] - trained - outcome.counts["dropped"]) + trained - len(set(outcome.trained))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=("virtual", "ray"))
    options = parser.parse_args()
    rows: list[Row] = []
    if options.only != "ray":
        rows += virtual_rows(quick=options.quick)
    if options.only != "virtual":
        rows += ray_rows(quick=options.quick)
    report("elasticity", rows, options.json)


if __name__ == "__main__":
    main()
