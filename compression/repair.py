"""Trains a model on the grid that is exported, so that a compressed copy writes and prefers again what the original
does.

Weights are rounded in every forward pass (straight-through estimator, arXiv:1308.3432; LLM-QAT, arXiv:2305.17888). What
is saved are the weights before rounding: rounding them again gives exactly the weights that were trained.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression.distil import Distillation, DistillationConfig, Distilled, save_trained
from compression.live import load_model
from compression.pairs import Pair
from compression.pruning.masks import masked, of_zeros
from compression.units import Assignment, Unit, forms_of
from learners.core.grid import trained_on_grid


def repair(
    source: Path,
    target: Path,
    units: Sequence[Unit],
    assignment: Assignment,
    pairs: Sequence[Pair],
    config: DistillationConfig,
    *,
    start: Path | None = None,
) -> Distilled:
    """Write the trained weights of a model, to be exported with the same assignment. start: a pruned copy that is
    trained in place of the model; what is 0 in it stays 0. Raises RunFailedError when the loss is not finite."""
    teacher: Any = load_model(source)
    student: Any = (load_model(start) if start else copy.deepcopy(teacher)).float()
    course = Distillation(teacher, student, pairs, config)
    zeros = of_zeros(student, units) if start and start != source else {}
    with masked(student, zeros), trained_on_grid(student, forms_of(units, assignment), teacher.dtype):
        report = course.finish()
    save_trained(student.to(teacher.dtype), source, target)
    return report
