"""What every unit costs in every format, to first order: one forward and one backward pass over the pairs, no sweep.

    change of a margin by a unit  ~  sum over its matrices of  <ds/dy, y' - y>

y is a matrix's output in the model as it is, y' its output on the same inputs with weights, and inputs where the format
has them, on the grid. So the rounding of inputs is in the estimate; what one unit does to the inputs of the next is
there to first order only. A row of a batch touches its own margin alone, so one backward pass of the sum of margins
gives the gradients of every pair.

P pairs, R rows of a batch, T tokens, I inputs and O outputs of a matrix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit
from scipy.stats import spearmanr

from compression.flips import BETA, Floats
from compression.live import LiveModel
from compression.pairs import ROWS, Pair, Scores, logprobs_of
from compression.sensitivity import Costs, Sweep, smallest
from compression.units import Unit
from learners.core.grid import inputs_on_grid, on_grid
from solon.files.whole_file import write_whole
from solon.models.formats import FORMATS, KEEP, Format, format_of

if TYPE_CHECKING:
    import torch

Key = tuple[str, str]
"""A unit and a format."""
LEAST_ENTRIES = 3
"""With fewer there is no rank correlation."""


def margin_changes(
    live: LiveModel, pairs: Sequence[Pair], formats: Sequence[str], *, rows: int = ROWS
) -> dict[Key, Floats]:
    """The estimated change of every pair's margin by each unit in each format that fits it, nats. [P] by unit and
    format. rows: sequences of one forward pass."""
    return {
        key: chosen_P - rejected_P
        for key, (chosen_P, rejected_P) in answer_changes(live, pairs, formats, rows=rows).items()
    }


def answer_changes(
    live: LiveModel, pairs: Sequence[Pair], formats: Sequence[str], *, rows: int = ROWS
) -> dict[Key, tuple[Floats, Floats]]:
    """The estimated changes of the log-probs of the chosen and of the rejected answers, nats. Both [P] by unit and
    format. rows: sequences of one forward pass."""
    keys = [(unit, name) for unit in live.units for name in formats if name != KEEP and unit.fits(FORMATS[name])]
    found = {(unit.name, name): (np.zeros(len(pairs)), np.zeros(len(pairs))) for unit, name in keys}
    # Pairs of a length stand together; a pair's two rows are in one batch.
    order = sorted(range(len(pairs)), key=lambda i: (_length(pairs[i]), i))
    for start in range(0, len(order), max(1, rows // 2)):
        chosen = order[start : start + max(1, rows // 2)]
        for key, change_R in _batch(live, [pairs[i] for i in chosen], formats).items():
            found[key][0][chosen], found[key][1][chosen] = change_R[0::2], -change_R[1::2]
    return found


def soft_flips_of(before: Scores, changes: Mapping[Key, Floats]) -> Costs:
    """The estimated soft flips of each unit alone. before: scores of the same pairs by the model as it is."""
    now_P = expit(BETA * before.margin_P)
    return {
        key: float(np.abs(now_P - expit(BETA * (before.margin_P + change_P))).mean())
        for key, change_P in changes.items()
    }


def screened(live: LiveModel, pairs: Sequence[Pair], before: Scores, formats: Sequence[str], kept: Path) -> Costs:
    """Estimated soft flips of every unit in every format, read from the file `kept` if they are there."""
    wanted = {(unit.name, name) for unit in live.units for name in formats if name != KEEP and unit.fits(FORMATS[name])}
    known = _read(kept)
    if not wanted <= known.keys():
        known |= soft_flips_of(before, margin_changes(live, pairs, formats))
        rows = [{"unit": unit, "format": form, "soft_flips": value} for (unit, form), value in sorted(known.items())]
        write_whole(kept, json.dumps(rows), what="screen")
    return {key: known[key] for key in wanted}


def swept_units(units: Sequence[Unit], formats: Sequence[str], screen: Costs, share: float) -> list[str]:
    """Names of the share of units that the screen ranks highest, each in its smallest format; at least one."""
    ranked = sorted(units, key=lambda unit: -screen.get((unit.name, smallest(unit, formats)), 0.0))
    return [unit.name for unit in ranked[: max(1, math.ceil(share * len(units)))]]


def completed(costs: Costs, screen: Costs, units: Sequence[Unit]) -> Costs:
    """Costs of swept units, and for the others the screen's estimate times the median of cost over estimate among the
    swept ones: both are then harm on one scale."""
    ratios = [costs[key] / estimate for key, estimate in screen.items() if key in costs and estimate > 0]
    scale = float(np.median(ratios)) if ratios else 1.0
    others = {key: scale * estimate for key, estimate in screen.items() if key not in costs}
    kept = {(unit.name, KEEP): 0.0 for unit in units}
    return {**kept, **others, **costs}


def agreement(screen: Costs, sweeps: Sequence[Sweep]) -> float | None:
    """Spearman's rank correlation of estimated and exact soft flips over the units and formats that were swept. None:
    there are too few, or all are equal."""
    exact = {(one.unit, one.form): one.damage.soft_flips for one in sweeps if one.kind == "in"}
    both = [(screen[key], value) for key, value in exact.items() if key in screen]
    if len(both) < LEAST_ENTRIES or any(len(set(side)) == 1 for side in zip(*both, strict=True)):
        return None
    return float(spearmanr(*zip(*both, strict=True)).statistic)


def _read(path: Path) -> Costs:
    """Empty: there is nothing that can be used."""
    try:
        return {(row["unit"], row["format"]): float(row["soft_flips"]) for row in json.loads(path.read_text("utf-8"))}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _length(pair: Pair) -> int:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def _batch(live: LiveModel, pairs: Sequence[Pair], formats: Sequence[str]) -> dict[Key, Floats]:
    """Changes of a batch's rows, the chosen and the rejected answer of each pair in turn, signed so that two rows sum
    to the change of a margin. [R]"""
    import torch

    rows = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    found: dict[Key, Floats] = {}
    with _watched(live, formats, found), torch.enable_grad():
        logprobs_R = logprobs_of(live.model, rows)
        margins: Any = logprobs_R[0::2].sum() - logprobs_R[1::2].sum()
        margins.backward()
    return found


@contextmanager
def _watched(live: LiveModel, formats: Sequence[str], found: dict[Key, Floats]) -> Iterator[None]:
    """Within it, a backward pass adds the change of every row to `found`."""
    embeddings: Any = live.model.get_input_embeddings()  # type: ignore[operator]  # of Transformers' models
    # Weights have no gradients: the graph starts at the embedded tokens.
    hooks = [embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))]
    try:
        for unit in live.units:
            fitting = [name for name in formats if name != KEEP and unit.fits(FORMATS[name])]
            for matrix in unit.matrices:
                hook = _hook(unit.name, fitting, found)
                hooks.append(live.layers[matrix.name].register_forward_hook(hook))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(unit: str, formats: Collection[str], found: dict[Key, Floats]) -> Any:
    """A forward hook of one matrix of a unit."""

    def watch(layer: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        x_RTI = inputs[0].detach()

        def changed(gradient_RTO: torch.Tensor) -> None:
            for name in formats:
                change_RTO = output_change(layer, x_RTI, format_of(name))
                change_R = (gradient_RTO.float() * change_RTO).flatten(1).double().sum(1).cpu().numpy()
                found[unit, name] = found[unit, name] + change_R if (unit, name) in found else change_R

        output.register_hook(changed)

    return watch


def output_change(layer: Any, x_RTI: torch.Tensor, form: Format) -> torch.Tensor:
    """y' - y of a linear layer, without the cancellation of two close outputs. float32 [R, T, O]"""
    import torch

    with torch.no_grad():
        rounded_OI = on_grid(layer.weight.data, form).float()
        found_RTO: torch.Tensor = x_RTI.float() @ (rounded_OI - layer.weight.data.float()).T
        if form.inputs:
            found_RTO += (inputs_on_grid(x_RTI, layer, form).float() - x_RTI.float()) @ rounded_OI.T
    return found_RTO
