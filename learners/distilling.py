"""A student taught from a model directory to another, in this process or on several ranks.

teach_student("models/judge", lessons, DistilConfig(epochs=2), Distilling(num_ranks=2), save_to=Path("models/small"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from learners.core.processes import device_of_ranks, run_on_ranks
from learners.core.ranks import ALONE, Ranks
from learners.networks.student import Student
from learners.objectives.distil import DistilConfig, DistilReport, Lesson, distil


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilling:
    """What a student is made of, and where it learns."""

    layers: Sequence[int] | None = None
    """Only these layers of the model, in this order; None: all."""
    num_ranks: int = 1
    """Processes that train together, each with a part of the student; on GPUs one for each device."""
    threads: int = 1
    """CPU threads of one process."""
    device: str = "auto"
    """`auto`: the GPU when there is one."""


def teach_student(
    model: str, lessons: Sequence[Lesson], config: DistilConfig, how: Distilling, *, save_to: Path
) -> DistilReport:
    """Teach a copy of a model, and save it with the model's tokenizer. Raises InputError, RunFailedError."""
    if how.num_ranks == 1:
        return _teach(ALONE, model, lessons, config, how, how.device, save_to)
    device = device_of_ranks(how.num_ranks, how.device, model)
    found: DistilReport = run_on_ranks(
        how.num_ranks, _teach, model, lessons, config, how, device, save_to, device=device, threads=how.threads
    )[0]
    return found


def _teach(
    ranks: Ranks,
    model: str,
    lessons: Sequence[Lesson],
    config: DistilConfig,
    how: Distilling,
    device: str,
    out: Path,
) -> DistilReport:
    torch.set_num_threads(how.threads)
    student = Student.load(model, layers=how.layers, device=device, ranks=ranks)
    report = distil(student, lessons, config)
    student.save(out)
    return report
