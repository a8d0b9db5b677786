"""Overlap of the lanes, compared with the same code run one stage after the other.

    python benchmarks/overlap.py [--quick] [--json PATH] [--only standins|nursery]

Stand-ins: real ledger and Ray actors, three balanced lanes that sleep. Nursery: the demo's models and run file, the
same steps async and sync for several seeds; the bound is the best that two cores allow at the lanes' busy times of the
synchronous run.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from actors.judge import RemoteJudge
from actors.learner import RemoteLearner
from actors.rollout import RemoteRollout
from benchmarks._harness import Row, arguments, report
from cluster.lanes import assemble_lanes
from cluster.launch import cluster
from solon.files.prompts import PromptSource, prompt_id
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.loop import run_loop
from solon.pipeline.pool import Pool
from solon.pipeline.publication import Publication, PublishConfig
from solon.records import Message, Prompt
from solon.recovery.guard import Guard, RecoveryConfig
from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedRollout
from solon.telemetry.overlap import LANES
from solon.telemetry.totals import RunTotals
from tests.standins.workers import TimedJudgeActor, TimedLearnerActor, TimedRolloutActor, make_weights

BATCH = 8
NURSERY = Path(__file__).resolve().parents[1] / "examples" / "nursery.toml"


class Watch(RunTotals):
    """A tally that is an observer by itself: nothing is written."""

    def generated(self, report: Any, payload_ref: Any = None) -> None:
        super().generated(report)

    def labelled(self, report: Any, payload_ref: Any = None) -> None:
        super().labelled(report)

    def event(self, name: str, **fields: Any) -> None: ...


async def standins(*, steps: int, lane_s: float, synchronous: bool) -> Watch:
    """Three lanes of `lane_s` seconds a batch each; returns the tally of the run."""
    # Four batches in progress: one in each busy lane, and one so that a lane never waits for a message.
    staleness = StalenessConfig(target_staleness=0 if synchronous else 3, max_staleness=4)
    config = LedgerConfig(batch_groups=BATCH, lockstep=synchronous)
    ledger = AsyncLedger(config, staleness, total_groups=steps * BATCH)
    writer = RemoteRollout(
        lambda _: TimedRolloutActor.remote(lane_s, 0.1, name="r", slots=BATCH), name="r", groups_at_once=2 * BATCH
    )
    judge = RemoteJudge(lambda _: TimedJudgeActor.remote(lane_s / BATCH, name="j"), name="j", groups_at_once=2 * BATCH)
    learner = RemoteLearner(lambda _: TimedLearnerActor.remote(lane_s, name="l"), name="l")
    # The actors are up before the clock starts.
    await asyncio.gather(writer.load_weights(make_weights(0)), judge.heartbeat(), learner.start())
    patience = RecoveryConfig()
    rollout = Pool([SupervisedRollout(writer, Guard(writer, patience))])
    watch = Watch(staleness_bound=4, total_steps=steps)
    messages = (Message(role="user", content="?"),)
    lanes = assemble_lanes(
        rollout=rollout,
        judges=Pool([SupervisedJudge(judge, Guard(judge, patience))]),
        learner=learner,
        ledger=ledger,
        prompts=PromptSource([Prompt(prompt_id=prompt_id(messages), messages=messages)], seed=0),
        publication=Publication(
            rollout, settings=PublishConfig(logprob_tolerance=1e-3, timeout_s=30), initial=make_weights(0)
        ),
        observer=watch,
        recovery=patience,
    )
    watch.begin()
    await run_loop(lanes, steps=steps, min_valid=1, stop=asyncio.Event())
    watch.end()
    return watch


def _put(value: Any) -> Any:
    import ray

    return ray.put(value)


def standin_rows(*, quick: bool) -> list[Row]:
    steps, lane_s = (12, 0.3) if quick else (150, 0.5)
    with cluster(dashboard=False):
        overlapped = asyncio.run(standins(steps=steps, lane_s=lane_s, synchronous=False))
        serial = asyncio.run(standins(steps=min(20, max(4, steps // 4)), lane_s=lane_s, synchronous=True))
    per_step = overlapped.wall_s / overlapped.steps
    serial_per_step = serial.wall_s / serial.steps
    return [
        Row(
            "stand-ins: overlap efficiency max(T)/wall",
            max(lane_seconds(overlapped)) / overlapped.wall_s,
            goal=">= 0.95",
        ),
        Row("stand-ins: the same, counting the seconds asked for", steps * lane_s / overlapped.wall_s),
        Row("stand-ins: speed-up over synchronous (bound 3)", serial_per_step / per_step, goal=">= 2.7"),
        Row("stand-ins: seconds a step, async (reference: sync)", per_step, serial_per_step),
        Row("stand-ins: largest staleness", max(overlapped.staleness), goal="<= 4"),
    ]


def lane_seconds(watch: Watch) -> tuple[float, float, float]:
    """Seconds of work that each lane actually did: sleeping takes longer than requested on a busy machine."""
    total = {lane: sum(s.end_s - s.start_s for s in watch.spans if s.lane == lane) for lane in LANES}
    return total["generate"] / BATCH, total["label"], total["learn"]


def nursery_run(*, seed: int, steps: int, synchronous: bool, root: Path) -> dict[str, Any]:
    """One training run; returns its summary."""
    from cluster.config.run_file import RunFile
    from cluster.train import train
    from solon.cli.names import with_paths
    from solon.cli.view import SilentView

    changes = ["staleness.target_staleness=0", "ledger.lockstep=true"] if synchronous else []
    run = RunFile.load(NURSERY, overrides=[*changes, f"seed={seed}", f"steps={steps}"])
    name = f"{'sync' if synchronous else 'async'}-{seed}"
    run = with_paths(run, progress=False)
    return train(run, name=name, default_name="bench", root=root, view=SilentView())


def nursery_rows(*, quick: bool) -> list[Row]:
    seeds, steps = ([0], 6) if quick else ([0, 1, 2], 30)
    speedups, shares, quality, ours, theirs = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            order = (True, False) if seed % 2 else (False, True)  # so that neither side always runs on a warmer machine
            found = {s: nursery_run(seed=seed, steps=steps, synchronous=s, root=Path(folder)) for s in order}
            overlapped, serial = found[False], found[True]
            speedups.append(serial["wall_s"] / overlapped["wall_s"])
            shares.append(speedups[-1] / core_bound(serial))
            quality.append(overlapped["eval"]["after"]["mean"] - serial["eval"]["after"]["mean"])
            ours.append(overlapped["wall_s"] / steps)
            theirs.append(serial["wall_s"] / steps)
            print(f"seed {seed}: async {ours[-1]:.2f} s a step, sync {theirs[-1]:.2f}; "
                  f"held-out {overlapped['eval']['after']['mean']:.3f} against {serial['eval']['after']['mean']:.3f}; "
                  f"async busy {overlapped['overlap']['busy']}, binds {overlapped['overlap']['binding_stage']}; "
                  f"sync busy {serial['overlap']['busy']}")  # fmt: skip
    return [
        Row("nursery: async over sync, worst seed", min(speedups), goal=">= 1.0"),
        Row("nursery: async over sync, median", statistics.median(speedups)),
        Row("nursery: share of the bound that the cores allow", statistics.median(shares), goal=">= 0.9"),
        Row("nursery: held-out adherence, async minus sync, mean", statistics.fmean(quality)),
        Row("nursery: seconds a step, async (reference: sync)", statistics.median(ours), statistics.median(theirs)),
    ]


def core_bound(serial: dict[str, Any]) -> float:
    """The best speed-up over a synchronous run: no lane gets faster, and the cores can be shared no further.

    Each lane keeps one core busy; with C cores the lanes' total work takes at least sum / C.
    """
    busy = [share * serial["wall_s"] for share in serial["overlap"]["busy"].values()]
    least = max(*busy, sum(busy) / (os.cpu_count() or 1))
    return sum(busy) / least


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=("standins", "nursery"))
    options = parser.parse_args()
    rows: list[Row] = []
    if options.only != "nursery":
        rows += standin_rows(quick=options.quick)
    if options.only != "standins":
        rows += nursery_rows(quick=options.quick)
    report("overlap", rows, options.json)


if __name__ == "__main__":
    main()
