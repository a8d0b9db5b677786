"""`python -m tests.chaos`: see the package."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy import stats

import tests.chaos
from tests.chaos.campaign import Campaign, Result, Subject
from tests.chaos.cluster_of_our_own import ROOT, ray_head
from tests.chaos.faults import FAULTS, RANK_FAULTS
from tests.chaos.standin_run import BATCH, is_spoilt, prompts_of
from tests.chaos.verdict import (
    committed_steps,
    complaints,
    expected_digest,
    learner_digest,
    lines_of,
    slope,
)

REAL_BATCH = 16
ENOUGH = 3
"""At least this many undisturbed runs, to predict the result of another one."""


def standin_subject(*, steps: int | None, target: int) -> Subject:
    """Stand-in workers; the learner's digest must be that of the batches on record, no more and no less."""

    spoils = target > 0  # on policy the batches are compared with those of an undisturbed run

    def judge(directory: Path) -> list[str]:
        found = complaints(directory, steps=steps, batch=BATCH, is_spoilt=lambda ordinal: spoils and is_spoilt(ordinal))
        batches = committed_steps(lines_of(directory / "metrics.jsonl"))
        if learner_digest(directory) != expected_digest(batches, prompts_of(), seed=0):
            found.append("the learner was trained on data other than the batches on record")
        if (
            target == 0
            and steps
            and [batches[s] for s in sorted(batches)] != [list(range(BATCH * s, BATCH * (s + 1))) for s in range(steps)]
        ):
            found.append("on policy, the batches are not those of an undisturbed run")
        return found

    def command(root: Path, name: str) -> list[str]:
        module = ["tests.chaos.standin_run", "--root", str(root), "--name", name]
        pace = ["--steps", str(steps or 10**6), "--lane", "0.1" if steps else "0.5"]
        return [*module, *pace, "--target", str(target), *(["--spoils"] if spoils else [])]

    return Subject(
        command=command,
        kinds={
            "rollout": "FailingRollout",
            "judge": "LabellingJudge",
            "learner": "FailingLearner",
            "audit": "AuditingJudge",
        },
        complaints=judge,
        patience_s=90,
        between_s=(0.2, 1.2) if steps else (20, 40),
        # A long run keeps its driver, whose memory, files and threads are sampled.
        faults=FAULTS if steps else without("driver", "disk", "node", "folder", "file", "raylet", "gcs", "agent"),
        is_lossy=True,
        names_command=True,
    )


def real_subject(*, steps: int, ranks: int = 1) -> Subject:
    """The nursery's run file, models and engines. ranks: with several, the faults are those of the learner's ranks."""
    settings = [
        f"steps={steps}",
        "checkpoint_every=4",
        "recovery.beat_every_s=1",
        "recovery.beat_timeout_s=10",
        "recovery.max_restarts=1000",
        "recovery.backoff_s=0",
        "ledger.max_losses=100",
    ]
    if ranks > 1:
        settings += [f"learn.num_ranks={ranks}", "learn.num_cpus=0.5", "learn.rank_timeout_s=20"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    run_file = str(ROOT / "examples" / "nursery.toml")
    return Subject(
        command=lambda _, name: ["tests.chaos.real_run", "train", run_file, "--name", name, "--resume", *overrides],
        kinds={"rollout": "Rollout", "judge": "Judge", "learner": "Learner"},
        complaints=lambda directory: [
            *complaints(directory, steps=steps, batch=REAL_BATCH),
            *(_others_lost(directory) if ranks > 1 else []),
        ],
        patience_s=240,
        between_s=(4, 14),
        faults=RANK_FAULTS if ranks > 1 else without("audit", "disk", "node"),  # the oracles evaluate
        names_command=True,
    )


def _others_lost(directory: Path) -> list[str]:
    """Whether a worker other than the learner was replaced, or a loss has no cause that names a rank."""
    lost = [event for event in lines_of(directory / "events.jsonl") if event["event"] == "worker_lost"]
    found = [f"{event['worker']} was lost: {event['cause']}" for event in lost if event["worker"] != "learner"]
    return found + [f"no rank is named: {event['cause']}" for event in lost if "rank" not in event["cause"]]


def without(*victims: str) -> dict[str, int]:
    """All faults except those of these victims."""
    return {fault: often for fault, often in FAULTS.items() if fault.split()[1] not in victims}


def report(result: Result, console: Console) -> dict[str, Any]:
    """Prints the findings, and returns them for a file."""
    table = Table(title="faults injected", title_justify="left")
    for column in ("fault", "times"):
        table.add_column(column)
    for fault, times in sorted(result.injected.items()):
        table.add_row(fault, str(times))
    table.add_row("all", str(result.injected.total()))
    console.print(table)
    away = Table(title="seconds until it is back", title_justify="left")
    for column in ("process", "times", "median", "worst"):
        away.add_column(column)
    rows = {}
    for kind, seconds in sorted(result.down_s.items()):
        rows[kind] = {"times": len(seconds), "median": statistics.median(seconds), "worst": max(seconds)}
        away.add_row(kind, str(len(seconds)), f"{rows[kind]['median']:.1f}", f"{rows[kind]['worst']:.1f}")
    console.print(away)
    console.print(f"drivers whose first calls were lost: {result.lossy}")
    for cause, times in result.ends.items():
        console.print(f"ended and resumed, {times} times: {cause}", markup=False)
    for complaint in result.complaints:
        console.print(f"FAILED: {complaint}", markup=False, style="red")
    if not result.complaints:
        console.print(f"{result.runs} runs: nothing lost, nothing counted twice")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "injected": dict(result.injected),
        "runs": result.runs,
        "down_s": rows,
        "lossy": result.lossy,
        "ends": dict(result.ends),
        "complaints": result.complaints,
        "adherence": [s["eval"]["after"]["mean"] for s in result.summaries if s["eval"].get("after")],
    }


def compare(adherence: list[float], undisturbed: list[float], console: Console) -> tuple[dict[str, Any], list[str]]:
    """Held-out adherence of runs with faults against that of runs without, and complaints.

    Bounds for as many undisturbed runs in 95 of 100 cases: prediction intervals of Student's t, Bonferroni.
    """
    count, mean = len(undisturbed), statistics.mean(undisturbed)
    if count < ENOUGH or not adherence:
        return {"undisturbed": undisturbed}, []
    quantile = stats.t.ppf(1 - 0.025 / len(adherence), count - 1)
    half = quantile * statistics.stdev(undisturbed) * math.sqrt(1 + 1 / count)
    low, high = mean - half, mean + half
    console.print(f"held-out adherence: undisturbed {_list(undisturbed)}, so {low:.3f} to {high:.3f} is to be expected")
    console.print(f"with faults: {_list(adherence)}")
    outside = [value for value in adherence if not low <= value <= high]
    wrong = [f"adherence with faults {_list(outside)} is not from {low:.3f} to {high:.3f}"] if outside else []
    for complaint in wrong:
        console.print(f"FAILED: {complaint}", style="red")
    return {"undisturbed": undisturbed, "expected": [low, high]}, wrong


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def soak(campaign: Campaign, root: Path, seconds: float, console: Console) -> dict[str, Any]:
    """One long run with occasional faults; the driver's memory, files and threads must not grow."""
    began = time.monotonic()
    campaign.one_run("soak", faults=10**6, seconds=seconds)
    found = report(campaign.result, console)
    events = lines_of(root / "soak" / "metrics.jsonl")
    minutes = {int((line["time"] - events[0]["time"]) // 60) for line in events}
    quiet = [minute for minute in range(max(minutes)) if minute not in minutes]
    # The first fifth is warming up: pools and caches fill.
    warm = [sample for sample in campaign.result.samples if sample[0] > seconds / 5]
    found["soak"] = {
        "seconds": round(time.monotonic() - began),
        "steps": len(events),
        "minutes_without_a_step": quiet,
    }
    for column, name in ((1, "rss_mib"), (2, "open_files"), (3, "threads")):
        series = [(sample[0], sample[column]) for sample in warm]
        found["soak"][name] = {"first": series[0][1], "last": series[-1][1], "per_hour": round(slope(series), 2)}
    console.print_json(json.dumps(found["soak"]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=tests.chaos.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--kills", type=int, default=50, help="faults in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", choices=("standins", "real"), default="standins")
    parser.add_argument("--target", type=int, default=1, help="target_staleness; 0: on policy")
    parser.add_argument("--only", action="append", metavar="FAULT", choices=FAULTS, help="no other faults than these")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="one long run instead")
    parser.add_argument("--undisturbed", type=int, default=0, help="runs without faults before the others, to compare")
    parser.add_argument("--ranks", type=int, default=1, help="of the real learner; with several, only they have faults")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
        ray_head(num_cpus=8) as head,
    ):
        root = Path(folder)
        if options.engines == "real":
            subject, each = real_subject(steps=30, ranks=options.ranks), 7
        elif options.soak:
            subject, each = standin_subject(steps=None, target=options.target), 0
        else:
            subject, each = standin_subject(steps=60, target=options.target), 25
        if options.only:
            subject = dataclasses.replace(subject, faults={fault: FAULTS[fault] for fault in options.only})
        campaign = Campaign(head, root, subject, seed=options.seed, say=console.print)
        if options.soak:
            found = soak(campaign, root, options.soak, console)
        else:
            for number in range(options.undisturbed):
                campaign.one_run(f"undisturbed-{number}", faults=0)
            undisturbed = [s["eval"]["after"]["mean"] for s in campaign.result.summaries if s["eval"].get("after")]
            campaign.run(faults=options.kills, each=each)
            found = report(campaign.result, console)
            found["adherence"] = found["adherence"][len(undisturbed) :]
            if undisturbed:
                comparison, wrong = compare(found["adherence"], undisturbed, console)
                found |= comparison
                found["complaints"] += wrong
        found["seed"], found["engines"], found["target"] = options.seed, options.engines, options.target
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
