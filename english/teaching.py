"""Teaches a judge: one verdict after each question, and dense hints while it reads an answer.

One verdict at the end of two hundred tokens is a faint signal. The programs can also say, at any word of an answer,
which wishes the answer would keep if it ended there. A linear probe on an inner layer must tell; it is discarded
afterwards.

B rows of a microbatch, T token positions, W hidden width, V vocabulary, M hints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from english.wishes import WISHES
from learners.core.course import CourseConfig
from learners.core.objective import Loss, Minibatch, Objective, Part, Prepared, StepContext
from learners.networks.student import Student
from learners.objectives.distil import Lesson

ROWS, WIDTH = 16, 32
"""Rows of a microbatch; its width is a multiple of WIDTH."""
CHANNELS = {name: index for index, name in enumerate(WISHES)}


@dataclass(frozen=True, slots=True)
class Hint:
    """What is known at one token of the context."""

    place: int
    """Position in the question's tokens."""
    channel: int
    """Of `CHANNELS`."""
    kept: bool


@dataclass(frozen=True, slots=True)
class HintedLesson:
    """A lesson with the hints about its answers."""

    lesson: Lesson
    hints: tuple[Hint, ...] = ()


HintedLessons = Sequence[HintedLesson]


class TeachingConfig(CourseConfig):
    """How a judge is taught."""

    learning_rate: float = Field(1e-4, gt=0)
    probe_learning_rate: float = Field(3e-3, gt=0)
    adam_beta2: float = Field(0.98, ge=0, lt=1)
    layers_after_probe: int = Field(2, ge=1)
    """Layers above the probe: they carry what it reads to the end of the question."""
    hints: float = Field(3.0, ge=0)
    """Weight of the hints beside the verdicts."""
    mass: float = Field(0.05, ge=0)
    """Weight of -log of the probability on both labels together."""
    max_grad_norm: float = Field(10.0, gt=0)


class Probe(nn.Module):
    """Reads hints off a layer. Each channel and truth weighs the same, however rare."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, len(CHANNELS))

    def forward(self, stream_MW: Tensor, channels_M: Tensor, kept_M: Tensor) -> Tensor:
        """Mean loss over the cells of channel and truth that occur."""
        stream_MW = stream_MW.float()
        stream_MW = stream_MW * torch.rsqrt(stream_MW.pow(2).mean(-1, keepdim=True) + 1e-6)
        logits_M = self.read(stream_MW).gather(1, channels_M[:, None])[:, 0]
        loss_M = functional.binary_cross_entropy_with_logits(logits_M, kept_M, reduction="none")
        cell_M = channels_M * 2 + kept_M.long()
        zeros = torch.zeros(2 * len(CHANNELS))
        sums, counts = zeros.index_add(0, cell_M, loss_M), zeros.index_add(0, cell_M, torch.ones_like(loss_M))
        return torch.as_tensor((sums / counts.clamp(min=1)).sum() / (counts > 0).sum())


class Teaching(Objective[HintedLessons, HintedLessons]):
    """Cross-entropy of the verdict over the vocabulary, and the hints. Computes in bfloat16 on a CPU that can."""

    def __init__(self, student: Student, config: TeachingConfig, *, dtype: torch.dtype) -> None:
        self.student, self.config = student, config
        self._dtype = dtype
        self.probe = Probe(student.network.config.hidden_size)

    def parts(self) -> dict[str, Part]:
        """The judge, and the probe at a rate of its own."""
        return {
            "judge": Part(self.student.network, self.config.learning_rate),
            "probe": Part(self.probe, self.config.probe_learning_rate),
        }

    def prepare(self, batch: HintedLessons, context: StepContext[HintedLessons]) -> Prepared[HintedLessons]:
        """One optimiser step, in microbatches of similar length."""
        by_length = sorted(batch, key=lambda one: len(one.lesson.question.prompt_token_ids))
        microbatches = [by_length[start : start + ROWS] for start in range(0, len(by_length), ROWS)]
        return Prepared(minibatches=[Minibatch(microbatches, float(len(batch)))])

    def loss(self, microbatch: HintedLessons, denominator: float) -> Iterator[Loss]:
        """Means over the minibatch."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            last_BV, inner_BTW = self._read(microbatch)
        labels_B2 = torch.tensor([one.lesson.question.label_ids for one in microbatch])
        target_B = torch.sigmoid(torch.tensor([one.lesson.margin for one in microbatch]))
        logprobs_B2 = last_BV.float().log_softmax(-1).gather(1, labels_B2)
        odds_B, lost_B = logprobs_B2[:, 0] - logprobs_B2[:, 1], -logprobs_B2.logsumexp(1)
        verdict = functional.binary_cross_entropy_with_logits(odds_B, target_B, reduction="sum") / denominator
        # At first nearly all probability is on other words, which would drown everything else.
        loss = verdict + self.config.mass * lost_B.sum() / denominator
        metrics = {"loss/mean": verdict.detach()}
        placed = [(row, hint) for row, one in enumerate(microbatch) for hint in one.hints]
        if placed and self.config.hints:
            rows_M = torch.tensor([row for row, _ in placed])
            places_M = torch.tensor([hint.place for _, hint in placed])
            channels_M = torch.tensor([hint.channel for _, hint in placed])
            kept_M = torch.tensor([float(hint.kept) for _, hint in placed])
            hints = self.probe(inner_BTW[rows_M, places_M], channels_M, kept_M) * len(microbatch) / denominator
            loss, metrics = loss + self.config.hints * hints, {**metrics, "hints/mean": hints.detach()}
        yield loss, metrics

    def _read(self, microbatch: HintedLessons) -> tuple[Tensor, Tensor]:
        """Logits after the last token of each row, and the stream below the last layers."""
        lengths = [len(one.lesson.question.prompt_token_ids) for one in microbatch]
        # Padded on the right: causal attention needs no mask then, and no token sees the padding.
        # A few widths only: kernels are prepared once for a shape, which takes longer than a step.
        ids_BT = torch.zeros(len(lengths), math.ceil(max(lengths) / WIDTH) * WIDTH, dtype=torch.long)
        for row, one in enumerate(microbatch):
            ids_BT[row, : lengths[row]] = torch.tensor(one.lesson.question.prompt_token_ids)
        network: Any = self.student.network
        read = network.base_model(input_ids=ids_BT, use_cache=False, output_hidden_states=True)
        last_BW = read.last_hidden_state[torch.arange(len(lengths)), torch.tensor(lengths) - 1]
        return network.lm_head(last_BW), read.hidden_states[-1 - self.config.layers_after_probe]
