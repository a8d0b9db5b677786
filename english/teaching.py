"""Teaches a judge: several questions behind each context, and dense hints while it reads the answers.

One verdict at the end of two hundred tokens is a faint signal. So a context is read once for several questions, and
the programs also say, at any word of an answer,
which wishes the answer would keep if it ended there. A linear probe on an inner layer must tell; it is discarded
afterwards.

B rows of a microbatch, T token positions, N questions, W hidden width, V vocabulary, M hints.
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

ROWS, WIDTH = 16, 32
"""Rows of a microbatch; its width is a multiple of WIDTH."""
CHANNELS = {name: index for index, name in enumerate(WISHES)}
OF_ONE, OF_TWO = len(WISHES), 2 * len(WISHES)
"""Offsets of the channels for the outcome of one answer, and of two."""
NUM_CHANNELS = 3 * len(WISHES)


@dataclass(frozen=True, slots=True)
class Hint:
    """What is known at one token of the context."""

    place: int
    """Position in the question's tokens."""
    channel: int
    """Of `CHANNELS`."""
    kept: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A question behind a context."""

    token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    margin: float
    """The program's verdict: log-odds of the first label, nats."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A prompt with one or two answers, the questions about them, and hints at words of the answers."""

    context: tuple[int, ...]
    questions: tuple[Asked, ...]
    hints: tuple[Hint, ...] = ()
    outcome: tuple[tuple[int, bool], ...] = ()
    """By channel, what is true of the whole answer, or whether the first of two is the better one. The inner layer must
    know it at the end of each question, so that the last layers have only to choose what was asked."""

    @property
    def length(self) -> int:
        """Tokens of the context and of all questions."""
        return len(self.context) + sum(len(asked.token_ids) for asked in self.questions)


Passages = Sequence[Passage]


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
        self.read = nn.Linear(width, NUM_CHANNELS)

    def forward(self, stream_MW: Tensor, channels_M: Tensor, kept_M: Tensor) -> Tensor:
        """Mean loss over the cells of channel and truth that occur."""
        stream_MW = stream_MW.float()
        stream_MW = stream_MW * torch.rsqrt(stream_MW.pow(2).mean(-1, keepdim=True) + 1e-6)
        logits_M = self.read(stream_MW).gather(1, channels_M[:, None])[:, 0]
        loss_M = functional.binary_cross_entropy_with_logits(logits_M, kept_M, reduction="none")
        cell_M = channels_M * 2 + kept_M.long()
        zeros = torch.zeros(2 * NUM_CHANNELS)
        sums, counts = zeros.index_add(0, cell_M, loss_M), zeros.index_add(0, cell_M, torch.ones_like(loss_M))
        return torch.as_tensor((sums / counts.clamp(min=1)).sum() / (counts > 0).sum())


class Teaching(Objective[Passages, Passages]):
    """Cross-entropy of the verdicts over the vocabulary, and the hints."""

    def __init__(self, student: Student, config: TeachingConfig, *, dtype: torch.dtype) -> None:
        """dtype: of the computation; bfloat16 where the processor computes it."""
        self.student, self.config = student, config
        self._dtype = dtype
        self.probe = Probe(student.network.config.hidden_size)

    def parts(self) -> dict[str, Part]:
        """The judge, and the probe at a rate of its own."""
        return {
            "judge": Part(self.student.network, self.config.learning_rate),
            "probe": Part(self.probe, self.config.probe_learning_rate),
        }

    def prepare(self, batch: Passages, context: StepContext[Passages]) -> Prepared[Passages]:
        """One optimiser step, in microbatches of similar length."""
        by_length = sorted(batch, key=lambda one: one.length)
        microbatches = [by_length[start : start + ROWS] for start in range(0, len(by_length), ROWS)]
        return Prepared(minibatches=[Minibatch(microbatches, float(len(batch)))])

    def loss(self, microbatch: Passages, denominator: float) -> Iterator[Loss]:
        """Means over the minibatch; the questions of a passage share its weight."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            verdicts_NV, inner_BTW, ends_N = self._read(microbatch)
        asked = [(one, 1 / len(passage.questions)) for passage in microbatch for one in passage.questions]
        labels_N2 = torch.tensor([one.label_ids for one, _ in asked])
        target_N = torch.sigmoid(torch.tensor([one.margin for one, _ in asked]))
        weights_N = torch.tensor([weight for _, weight in asked]) / denominator
        logprobs_N2 = verdicts_NV.float().log_softmax(-1).gather(1, labels_N2)
        odds_N, lost_N = logprobs_N2[:, 0] - logprobs_N2[:, 1], -logprobs_N2.logsumexp(1)
        verdict_N = functional.binary_cross_entropy_with_logits(odds_N, target_N, reduction="none")
        verdict = (weights_N * verdict_N).sum()
        # At first nearly all probability is on other words, which would drown everything else.
        loss = verdict + self.config.mass * (weights_N * lost_N).sum()
        hints = self._hints(microbatch, inner_BTW, ends_N) * len(microbatch) / denominator
        metrics = {"loss/mean": verdict.detach(), "hints/mean": hints.detach()}
        yield loss + self.config.hints * hints, metrics

    def _hints(self, microbatch: Passages, inner_BTW: Tensor, ends_N: tuple[Tensor, Tensor]) -> Tensor:
        placed = [(row, hint) for row, one in enumerate(microbatch) for hint in one.hints]
        for row, end in zip(ends_N[0].tolist(), ends_N[1].tolist(), strict=True):
            placed += [(row, Hint(end, channel, kept)) for channel, kept in microbatch[row].outcome]
        if not placed:
            return torch.zeros(())
        rows_M = torch.tensor([row for row, _ in placed])
        places_M = torch.tensor([hint.place for _, hint in placed])
        channels_M = torch.tensor([hint.channel for _, hint in placed])
        kept_M = torch.tensor([float(hint.kept) for _, hint in placed])
        return torch.as_tensor(self.probe(inner_BTW[rows_M, places_M], channels_M, kept_M))

    def _read(self, microbatch: Passages) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Logits after the last token of each question, the stream below the last layers, and those last tokens."""
        laid = lay(microbatch)
        network: Any = self.student.network
        read = network.base_model(
            input_ids=laid.ids_BT,
            position_ids=laid.positions_BT,
            attention_mask=laid.mask_BTT[:, None],
            use_cache=False,
            output_hidden_states=True,
        )
        inner_BTW = read.hidden_states[-1 - self.config.layers_after_probe]
        return network.lm_head(read.last_hidden_state[laid.ends_N]), inner_BTW, laid.ends_N


@dataclass(frozen=True, slots=True)
class Laid:
    """Passages as tensors; N questions in the order of the passages."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_BTT: Tensor
    """Whether a token (second axis) sees another (third)."""
    ends_N: tuple[Tensor, Tensor]
    """Row and column of the last token of each question."""


def lay(passages: Passages) -> Laid:
    """Questions one after another behind their context. Each sees the context and itself, at the positions that it
    would have alone, so that its verdict is the one that an engine gives."""
    # A few widths only: kernels are prepared once for a shape, which takes longer than a step.
    width = math.ceil(max(one.length for one in passages) / WIDTH) * WIDTH
    ids_BT = torch.zeros(len(passages), width, dtype=torch.long)
    positions_BT, parts_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -1)
    rows, columns = [], []
    for row, one in enumerate(passages):
        start = 0
        for part, ids in enumerate((one.context, *(asked.token_ids for asked in one.questions))):
            end, offset = start + len(ids), len(one.context) if part else 0
            ids_BT[row, start:end] = torch.tensor(ids)
            positions_BT[row, start:end] = torch.arange(offset, offset + len(ids))
            parts_BT[row, start:end] = part
            if part:
                rows.append(row)
                columns.append(end - 1)
            start = end
    same_BTT = parts_BT[:, :, None] == parts_BT[:, None, :]
    sees_BTT = same_BTT | (parts_BT == 0)[:, None, :]
    mask_BTT = sees_BTT & torch.ones(width, width, dtype=torch.bool).tril()
    return Laid(ids_BT, positions_BT, mask_BTT, (torch.tensor(rows), torch.tensor(columns)))
