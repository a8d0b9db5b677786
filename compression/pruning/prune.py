"""Removes weights in stages and trains what is left after each, so that the rest learns to do without them.

    prune(source, target, pairs, Pruning(weights=0.5), DistillationConfig())   # a model of the same or a smaller shape

`weights` are set to 0, which makes files smaller only when they are packed, and no engine faster; `channels`, `groups`
and `layers` are cut out, so that every engine serves the smaller model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression.distil import Distillation, DistillationConfig, Distilled, save_trained
from compression.live import load_model
from compression.pairs import Pair
from compression.pruning.importance import importance_of
from compression.pruning.masks import Masks, cubic, masked, masks_of
from compression.pruning.plan import Pruning
from compression.pruning.shapes import cut_out
from compression.units import Unit, units_of

STAGES = 4
SCORED = 256
"""Pairs that importance is measured on."""


def prune(
    source: Path,
    target: Path,
    pairs: Sequence[Pair],
    pruning: Pruning,
    config: DistillationConfig,
) -> Distilled:
    """Write the pruned and trained model. Raises InputError for a share that leaves nothing, RunFailedError when the
    loss is not finite."""
    teacher: Any = load_model(source)
    student: Any = copy.deepcopy(teacher).float()
    if pruning.cuts:
        student = cut_out(student, pairs[:SCORED], pruning)
    course = Distillation(teacher, student, pairs, config)
    if pruning.weights:
        report = _in_stages(student, units_of(student), pairs[:SCORED], pruning, course)
    else:
        report = course.finish()
    save_trained(student.to(teacher.dtype), source, target)
    return report


def _in_stages(
    student: Any, units: Sequence[Unit], pairs: Sequence[Pair], pruning: Pruning, course: Distillation
) -> Distilled:
    """Sparsity rises by a cubic schedule over the first half of the course; scores are measured again at each stage."""
    for stage in range(1, STAGES):
        with masked(student, _masks(student, units, pairs, pruning, stage)):
            course.run(course.steps // (2 * STAGES))
    with masked(student, _masks(student, units, pairs, pruning, STAGES)):
        return course.finish()


def _masks(student: Any, units: Sequence[Unit], pairs: Sequence[Pair], pruning: Pruning, stage: int) -> Masks:
    student.eval()
    found = importance_of(student, units, pairs)
    student.train()
    return masks_of(found, sparsity=cubic(stage, STAGES, pruning.weights), method=pruning.method)
