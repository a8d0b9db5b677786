"""The evidence in a run's files: the only witness that the harness believes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from solon.checkpoints.folder import CheckpointFolder
from solon.files.prompts import PromptSource
from solon.ledger.conservation import account
from solon.ledger.ledger import Grant
from solon.records import Feedback, Prompt
from tests.standins.workers import batch_digest, make_group


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a .jsonl file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]


def committed_steps(metrics: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
    """Ordinals by step; the last line of a step counts."""
    return {line["step"]: line["batch/ordinals"] for line in metrics}


def complaints(
    directory: Path, *, steps: int | None, batch: int, is_spoilt: Callable[[int], bool] = lambda ordinal: False
) -> list[str]:
    """Everything that is wrong with a run in which only spoilt groups may be dropped; empty: all its promises hold.


    steps: of a completed run; None: the run was stopped, and the groups in its last checkpoint are held.
    """
    import pyarrow.parquet as pq

    events, metrics = lines_of(directory / "events.jsonl"), lines_of(directory / "metrics.jsonl")
    summary = json.loads((directory / "summary.json").read_text())
    found, held = [], []
    if steps is None:
        checkpoint = CheckpointFolder(directory / "checkpoints").last()
        held = [entry.ordinal for entry in checkpoint.ledger.entries] if checkpoint else []
    total = account(events, metrics, admitted=summary["groups"]["admitted"], held=held)
    status, steps = ("stopped", summary["steps"]) if steps is None else ("completed", steps)
    if total.lost:
        found.append(f"lost: {sorted(total.lost)[:9]}")
    if total.doubled:
        found.append(f"counted twice: {sorted(total.doubled)[:9]}")
    needless = {ordinal: why for ordinal, why in total.dropped.items() if not is_spoilt(ordinal)}
    if needless or len(total.committed) != steps * batch:
        missing = set(range(steps * batch)) - total.committed.keys()
        found.append(f"not trained: {sorted(missing)[:9]}, dropped: {dict(list(needless.items())[:3])}")
    if spoilt := [ordinal for ordinal in total.committed if is_spoilt(ordinal)]:
        found.append(f"trained without a verdict: {sorted(spoilt)[:9]}")
    if summary["status"] != status or summary["steps"] != steps:
        found.append(f"the summary says {summary['status']} after {summary['steps']} steps")
    if summary["weights"]["attested"] != steps:
        found.append(f"{summary['weights']['attested']} versions were attested")
    if summary["staleness"]["max"] > summary["staleness"]["bound"]:
        found.append(f"staleness {summary['staleness']['max']} exceeds {summary['staleness']['bound']}")
    unreadable = {event["ordinal"] for event in events if event["event"] == "rows_lost"}
    for table in ("rollouts", "labels"):
        parts = (directory / table).glob("*.parquet")
        kept = {o for part in parts for o in pq.read_table(part, columns=["ordinal"])["ordinal"].to_pylist()}
        if missing := total.committed.keys() - kept - unreadable:
            found.append(f"trained without a trace in {table}: {sorted(missing)[:9]}")
    found += version_complaints(events, steps=steps)
    bound = summary["staleness"]["bound"]
    if late := [line["step"] for line in metrics if line.get("batch/staleness/max", 0) > bound]:
        found.append(f"staler than {bound} at steps {late[:9]}")
    return found


def version_complaints(events: Sequence[Mapping[str, Any]], *, steps: int) -> list[str]:
    """Every version is attested once, in order; after a resume, from the checkpoint's on."""
    found, live = [], 0
    for event in events:
        if event["event"] == "resumed":
            live = event["step"]
        elif event["event"] == "published":
            if event["version"] != live + 1:
                found.append(f"version {event['version']} was published on top of {live}")
            live = event["version"]
    return found if live == steps else [*found, f"the last version published is {live} of {steps}"]


def expected_digest(batches: Mapping[int, Sequence[int]], prompts: Sequence[Prompt], *, seed: int) -> str:
    """The digest of a stand-in learner after these batches and no others."""
    source, digest = PromptSource(prompts, seed=seed), "stand-in"
    for step in sorted(batches):
        payloads: list[Any] = []
        for ordinal in sorted(batches[step]):
            group = make_group(Grant(ordinal, 0, 0), source[ordinal], 0)
            payloads += [group, Feedback(ordinal=ordinal, attempt=0, rewards_G=(1.0,), labels=())]
        digest = batch_digest(digest, payloads)
    return digest


def learner_digest(directory: Path) -> str:
    """The digest of the learner in the last checkpoint."""
    checkpoint = CheckpointFolder(directory / "checkpoints").last()
    assert checkpoint is not None, f"{directory} has no whole checkpoint"
    digest: str = json.loads((checkpoint.path / "learner.json").read_text())["digest"]
    return digest


def downtimes(events: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Seconds from a loss to the replacement being up, by kind of worker."""
    found: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "worker_recovered":
            found.setdefault(str(event["worker"]).partition("-")[0], []).append(float(event["downtime_s"]))
    return found


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Change per hour of a quantity sampled as (seconds, value), by least squares."""
    times, values = (np.array(column, float) for column in zip(*samples, strict=True))
    return float(np.polyfit(times, values, 1)[0] * 3600)
