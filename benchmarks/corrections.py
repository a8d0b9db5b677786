"""Effect of critic, importance weights, clipping and staleness bound on stale rollouts served in few bits.

    python benchmarks/corrections.py [--quick] [--json PATH]

Each variant removes one part of the full algorithm:

    no critic     the value is the mean return of the first batch, everywhere
    uncorrected   rollouts are treated as if from the current policy (importance weights of 1)
    plain         PPO as published: one ratio, to the generating policy; no decoupling, no weights
    no clip       neither clip nor dual clip

A figure is the mean score over the second half of a run. Differences to the full algorithm are paired by seed: their
mean, and the lower end of its 95 % interval (Student's t over the seeds).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._corrections import Amount, Chain, Variant, train
from benchmarks._harness import Row, arguments, report

FULL = Variant("full")
SEQUENCE = Variant("sequence weights", {"importance": "sequence"})
UNCORRECTED = Variant("uncorrected", corrected=False)
ABLATIONS = (
    Variant("no critic", {"critic_learning_rate": 1e-12}),
    UNCORRECTED,
    Variant("plain", {"bypass": True, "importance": "none", "epochs": 1, "minibatches": 1}),
    Variant("no clip", {"clip_low": 0.999999, "clip_high": 1e6, "dual_clip": None}),
)
BITS = 3


def late_scores(
    world: type[Chain] | type[Amount], variant: Variant, *, lag: int, bits: int | None, seeds: int, steps: int
) -> list[float]:
    """Mean score over the second half of the run, for every seed."""
    scores = []
    for seed in range(seeds):
        curve = train(world(seed), variant, lag=lag, bits=bits, seed=seed, steps=steps)
        scores.append(float(np.mean(curve[len(curve) // 2 :])))
    shown = " ".join(f"{score:.3f}" for score in scores)
    print(f"{world.name}, lag {lag}, {bits or 32} bits, {variant.name}: {shown}", flush=True)
    return scores


def advantage(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean of the paired differences and the lower end of its 95 % interval; two seeds at least."""
    from scipy import stats

    difference = np.subtract(ours, theirs)
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean()), float(difference.mean() - half)


def rows_of(title: str, ours: Sequence[float], theirs: Sequence[float]) -> list[Row]:
    rows = [Row(title, float(np.mean(ours)), float(np.mean(theirs)))]
    if len(ours) > 1:
        difference, low = advantage(ours, theirs)
        rows.append(Row(f"{title}: difference", difference))
        rows.append(Row(f"{title}: difference, lower end of 95 %", low, goal=">= 0.0"))
    return rows


def part_rows(*, lag: int, seeds: int, steps: int) -> list[Row]:
    """The full algorithm compared with variants that lack one part."""
    full = late_scores(Chain, FULL, lag=lag, bits=BITS, seeds=seeds, steps=steps)
    rows = []
    for variant in ABLATIONS:
        without = late_scores(Chain, variant, lag=lag, bits=BITS, seeds=seeds, steps=steps)
        rows += rows_of(f"chain, {lag} steps old, {BITS} bits: full (reference: {variant.name})", full, without)
    return rows


def staleness_rows(*, lags: Sequence[int], seeds: int, steps: int) -> list[Row]:
    """The same with increasing lag, where old answers mislead."""
    young, *older = lags
    found = {
        (variant.name, lag): late_scores(Amount, variant, lag=lag, bits=None, seeds=seeds, steps=steps)
        for variant in (FULL, SEQUENCE, UNCORRECTED)
        for lag in lags
    }
    rows = []
    for lag in older:
        title = f"amount: {young} steps old (reference: {lag} steps old)"
        rows += rows_of(title, found[FULL.name, young], found[FULL.name, lag])
    for variant in (FULL, SEQUENCE):
        for lag in older:
            title = f"amount, {lag} steps old: {variant.name} (reference: uncorrected)"
            rows += rows_of(title, found[variant.name, lag], found[UNCORRECTED.name, lag])
    return rows


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    if options.quick:
        rows = part_rows(lag=4, seeds=1, steps=60) + staleness_rows(lags=(1, 8), seeds=1, steps=40)
    else:
        rows = part_rows(lag=2, seeds=5, steps=120) + part_rows(lag=8, seeds=5, steps=120)
        rows += staleness_rows(lags=(1, 2, 4, 8), seeds=5, steps=100)
    report("corrections", rows, options.json)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
