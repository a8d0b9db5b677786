"""Rows of `benchmarks/compression.py` on what guides the choice of formats: preferences, perplexity, or chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks._harness import Row
from compression.assignment import assign, random_assignments
from compression.flips import damage
from compression.live import LiveModel
from compression.pairs import Pair, Scores, scores_of
from compression.screen import answer_changes, soft_flips_of
from compression.sensitivity import Costs, Guide
from compression.units import Assignment, size_of, uniform
from solon.models.formats import KEEP

GUIDES: tuple[Guide, Guide] = ("preferences", "perplexity")


def guided_rows(
    name: str,
    live: LiveModel,
    gate: Sequence[Pair],
    costs: Mapping[Guide, Costs],
    budgets: Sequence[float],
    *,
    random_ones: int,
) -> list[Row]:
    """Flips of the assignments that each guide chooses, and of random ones, at equal bytes. costs: by guide. budgets:
    shares of the bytes of the linear layers. random_ones: assignments by chance at each of them; 0: none."""
    before, whole = scores_of(live.model, gate), size_of(live.units, uniform(live.units, KEEP))
    flips: dict[str, list[float]] = {"preferences": [], "perplexity": [], "chance": []}
    sizes: dict[Guide, list[float]] = {guide: [] for guide in GUIDES}
    for budget in budgets:
        most = int(budget * whole)
        for guide in GUIDES:
            point = assign(live.units, costs[guide], most)
            flips[guide].append(_flipped(live, before, gate, point.assignment))
            sizes[guide].append(round(point.size / whole, 4))
        if random_ones:
            drawn = random_assignments(live.units, costs["preferences"], most, random_ones, seed=0)
            flips["chance"].append(float(np.median([_flipped(live, before, gate, one) for one in drawn])))
    print(f"{name}: flips {flips}, shares of the bytes {sizes}", flush=True)
    ours, theirs = (float(np.mean(flips[guide])) for guide in GUIDES)
    rows = [
        Row(f"{name}: flips, guided by preferences (reference: by perplexity)", ours, theirs),
        Row(f"{name}: the ratio of the two", ours / theirs if theirs else float("nan"), goal="<= 0.7"),
    ]
    if random_ones:
        chance = float(np.mean(flips["chance"]))
        rows.append(Row(f"{name}: flips of {random_ones} random assignments, median (reference: ours)", chance, ours))
    return rows


def costs_by_gradients(live: LiveModel, pairs: Sequence[Pair], formats: Sequence[str]) -> dict[Guide, Costs]:
    """For a model whose sweeps would take hours: by guide, the estimated soft flips, and the estimated change of the
    nats a token of the chosen answers."""
    before, changes = scores_of(live.model, pairs), answer_changes(live, pairs, formats)
    kept = {(unit.name, KEEP): 0.0 for unit in live.units}
    tokens = before.tokens_P.sum()
    nll = {key: float(abs(chosen_P.sum()) / tokens) for key, (chosen_P, _) in changes.items()}
    margins = {key: chosen_P - rejected_P for key, (chosen_P, rejected_P) in changes.items()}
    return {"preferences": {**kept, **soft_flips_of(before, margins)}, "perplexity": {**kept, **nll}}


def _flipped(live: LiveModel, before: Scores, gate: Sequence[Pair], assignment: Assignment) -> float:
    with live.compressed(assignment) as compressed:
        return damage(before, scores_of(compressed, gate)).flips
