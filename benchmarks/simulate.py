"""Runs on paper: how large a run the loop carries, how long simulating it takes, and whether its promises hold.

    python benchmarks/simulate.py [--quick] [--json PATH] [--curve]

The cluster grows by units of eight accelerators: one engine on four, one judge on two, two ranks of the learner, with
rates at which the three lanes are nearly balanced. The batch grows with it: 32 groups of 8 answers a unit. The rates
are assumptions, of the size that engines of 7B policies publish; the curves show what the loop does with them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from solon.recovery.config import RecoveryConfig
from solon.simulation.outcome import Outcome
from solon.simulation.run import simulate
from solon.simulation.scenario import Failures, Lengths, Scenario

UNIT = 8
"""Accelerators of a unit."""
SIZES = (8, 64, 256, 1024, 2048, 4096)


def cluster(accelerators: int, *, steps: int, at_once: int = 0, failures: Failures | None = None) -> Scenario:
    """A balanced cluster. at_once: engines that take a version at the same time; 0: an eighth of them."""
    units = accelerators // UNIT
    return Scenario(
        engines=units,
        accelerators_per_engine=4,
        slots=48,
        judges=units,
        accelerators_per_judge=2,
        judge_slots=32,
        learner_ranks=2 * units,
        batch_groups=32 * units,
        target_staleness=2,
        max_staleness=4,
        steps=steps,
        lengths=Lengths(mean=1000, sigma=0.5, max_tokens=4096),
        rollout_rate=((1, 100), (64, 5000), (256, 12_000)),
        judge_rate=((1, 0.6), (16, 1.8)),
        learner_s=1.0,
        learner_s_per_token=6.1e-5 / units,
        publish_s=2.0,
        publish_pause_s=0.2,
        publish_at_once=at_once or max(1, units // 8),
        max_held_mib=32_768,
        failures=failures or Failures(),
        recovery=RecoveryConfig(max_restarts=20),
    )


def failing(accelerators: int, *, steps: int) -> Scenario:
    """The same with deaths everywhere: an engine or judge every few steps, the learner twice in a run."""
    units = accelerators // UNIT
    often = Failures(
        rollout_mtbf_s=100.0 * units,
        judge_mtbf_s=150.0 * units,
        spot_mtbf_s=300.0 * units,
        learner_mtbf_s=300,
        rollout_restart_s=45,
        judge_restart_s=45,
        learner_restart_s=30,
    )
    return cluster(accelerators, steps=steps, failures=often)


def broken(outcome: Outcome) -> int:
    """Groups about which a promise was broken."""
    return outcome.violations + abs(outcome.lost) + outcome.twice


def curve(sizes: Sequence[int], *, steps: int, at_once: int = 0) -> list[Outcome]:
    """Outcomes by the number of accelerators."""
    return [simulate(cluster(size, steps=steps, at_once=at_once)) for size in sizes]


def print_curve(title: str, outcomes: Sequence[Outcome]) -> None:
    """As a Markdown table."""
    print(f"\n{title}\n")
    print("| accelerators | groups | groups/s | overlap | binds | staleness p50, max | publication, s | ", end="")
    print("driver, transitions/s | held, GB | simulated in, s | us a group |")
    print("|" + "---:|" * 11)
    for o in outcomes:
        print(
            f"| {o.accelerators:,} | {o.groups:,} | {o.groups_per_s:,.2f} | {o.efficiency:.3f} | {o.binding_stage} | "
            f"{o.staleness_p50}, {o.staleness_max} | {o.publish_s:,.1f} | {o.transitions_per_s:,.0f} | "
            f"{o.most_held_bytes / 1e9:.2f} | {o.compute_s:.1f} | {1e6 * o.compute_s / o.groups:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--curve", action="store_true", help="print the curves of docs/scaling.md as well")
    options = parser.parse_args()
    size, steps = (512, 10) if options.quick else (4096, 62)
    whole = simulate(cluster(size, steps=steps))
    small = cluster(256, steps=10)
    first, again = simulate(small), simulate(small)
    faulty = [simulate(failing(64, steps=30).model_copy(update={"seed": seed})) for seed in range(3)]
    kept = broken(whole) + broken(first) + sum(map(broken, faulty))
    deaths = sum(outcome.faults.get("worker_lost", 0) for outcome in faulty)
    seconds_goal = "" if options.quick else "<= 60"
    rows = [
        Row(
            f"{whole.accelerators:,} accelerators: groups trained",
            whole.groups,
            goal=f">= {10**6 if steps > 60 else 1}",
        ),
        Row("the same: processor seconds of the simulation", whole.compute_s, goal=seconds_goal),
        Row("the same: overlap efficiency", whole.efficiency, goal="" if options.quick else ">= 0.9"),
        Row("the same: microseconds a group, loop and ledger included", 1e6 * whole.compute_s / whole.groups),
        Row("the same: transitions per simulated second at the driver", whole.transitions_per_s),
        Row("the same seed gives the same events (1: yes)", float(first == again), goal=">= 1"),
        Row("workers that died in the runs with failures", deaths, goal=">= 10"),
        Row("groups lost, trained twice or beyond the staleness bound, all runs", kept, goal="<= 0"),
        Row("largest staleness with failures", max(o.staleness_max for o in faulty), goal="<= 4"),
    ]
    report("simulate", rows, options.json)
    if options.curve:
        steps = 4 if options.quick else 24
        waves = [*curve(SIZES[:-1], steps=steps), whole]
        print_curve("An eighth of the engines takes a version at the same time:", waves)
        print_curve("One engine after the other (the default):", curve(SIZES, steps=steps // 3, at_once=1))


if __name__ == "__main__":
    main()
