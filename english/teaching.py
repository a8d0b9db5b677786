"""Teaches a judge: several questions behind each context, and dense hints while it reads the answers.

One verdict at the end of a hundred tokens is a faint signal. So a context is read once for several questions, and the
programs also say, at any word of an answer, which wishes the answer would keep if it ended there, and at the word that
the user asked for, whether the answers have it. A linear probe on an inner layer must tell; it is discarded afterwards.

B rows of a microbatch, T token positions, N questions, W hidden width, V vocabulary, M hints.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from english.wishes import LIMITS, WISHES
from learners.core.attention import use_plain_attention
from learners.core.course import CourseConfig
from learners.core.objective import Loss, Minibatch, Objective, Part, Prepared, StepContext
from learners.core.packing import OVERHEAD, pack
from learners.networks.student import Student

TOLD = 3.0
"""Log-odds that the probe reads of a truth that is written into the stream."""
MOST_WEIGHT = 4.0
"""Of a question, however rare its verdict is."""
WIDTH = 32
"""The width of a microbatch is a multiple of it."""
OF_WORDS = tuple(name for name in WISHES if name not in ("brief", "mention", "avoid", "topic"))
"""Wishes that the words of an answer decide, whatever the user said."""
LOWER = (
    *OF_WORDS, *(f"within:{limit}" for limit in LIMITS),
    "A:has", "B:has", "named:mention", "named:avoid", "named:topic", "A:named", "B:named",
)  # fmt: skip
"""What hints tell at words of an answer and at its end: what it would keep if it ended there. And at each word of the
user: whether answer A (or the only one) and answer B have it, and whether the user asked for it or against it or
named the topic with it; once more, at such a word, whether they have it."""
UPPER = tuple(f"{which}:{name}" for which in ("A", "B", "better") for name in WISHES)
"""What hints tell at the end of the user's words: all that is true of the answers, and whether A is the better of two
where the programs see a difference. At a word or number that the user named, the same of this wish alone."""
CHANNELS = {name: index for index, name in enumerate((*LOWER, *UPPER))}


@dataclass(frozen=True, slots=True)
class Hint:
    """What is known at one token of the context."""

    place: int
    """Position in the context's tokens."""
    channel: int
    """Of `CHANNELS`."""
    kept: float
    """Probability that the wish is kept: 0 or 1, or between where the program measures a degree."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question behind a context."""

    token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    margin: float
    """The program's verdict: log-odds of the first label, nats."""
    hints: tuple[Hint, ...] = ()
    """At the word or number that the question names, and at its end; places count from the first of `token_ids`."""
    kind: str = ""
    """Number of answers and wish: `2/brief`."""
    weight: float = 1.0
    """In the loss, beside the other questions of its passage."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A prompt with one or two answers, the questions about them, and hints at words of the answers."""

    context: tuple[int, ...]
    questions: tuple[Asked, ...]
    hints: tuple[Hint, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the context and of all questions."""
        return len(self.context) + sum(len(asked.token_ids) for asked in self.questions)


Passages = Sequence[Passage]
Placed = tuple[int, int, Hint]
"""Row, column, and what is known there."""


def balanced(passages: Passages) -> list[Passage]:
    """The same passages with weights under which both verdicts of each kind of question count the same. A judge that is
    taught what is rare would rather say no: it ranks answers well and misses most of those that keep the wish."""
    counts = Counter((asked.kind, asked.margin > 0) for one in passages for asked in one.questions)

    def weighted(asked: Asked) -> Asked:
        same, other = (counts[asked.kind, side] for side in (asked.margin > 0, asked.margin <= 0))
        return replace(asked, weight=min((same + other) / (2 * same), MOST_WEIGHT))

    return [replace(one, questions=tuple(map(weighted, one.questions))) for one in passages]


class TeachingConfig(CourseConfig):
    """How a judge is taught."""

    learning_rate: float = Field(6e-4, gt=0)
    batch: int = Field(16, ge=1)
    probe_learning_rate: float = Field(3e-3, gt=0)
    adam_beta2: float = Field(0.98, ge=0, lt=1)
    layers_after_upper: int = Field(2, ge=1)
    """Layers above the probe of the user's last token: they carry what it reads to the end of the question."""
    layers_after_lower: int = Field(4, ge=1)
    """Layers above the probe of single words: they carry what it reads to the user's last token."""
    hints: float = Field(3.0, ge=0)
    """Weight of the hints beside the verdicts."""
    told_steps: int = Field(200, ge=0)
    """Over so many steps, the share of passages whose truths are written into the stream falls from 1 to 0: the last
    layers learn to choose what was asked before the others have learnt what is true."""
    mass: float = Field(0.05, ge=0)
    """Weight of -log of the probability on both labels together."""
    max_grad_norm: float = Field(10.0, gt=0)


class Probe(nn.Module):
    """Reads hints off two layers. Each channel and truth weighs the same, however rare."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A few coordinates of a language model's stream are hundreds of times as large as the others.
        self.even = nn.ModuleList(nn.BatchNorm1d(width, affine=False) for _ in range(2))
        self.read = nn.Linear(width, len(CHANNELS))

    def forward(self, lower_MW: Tensor, upper_MW: Tensor, channels_M: Tensor, kept_M: Tensor) -> Tensor:
        """Mean loss over the cells of channel and truth that occur."""
        loss_M = torch.zeros(len(kept_M))
        is_upper_M = channels_M >= len(LOWER)
        for even, stream_MW, chosen_M in zip(self.even, (lower_MW, upper_MW), (~is_upper_M, is_upper_M), strict=True):
            logits_M = self.read(even(stream_MW[chosen_M].float())).gather(1, channels_M[chosen_M, None])[:, 0]
            losses_M = functional.binary_cross_entropy_with_logits(logits_M, kept_M[chosen_M], reduction="none")
            loss_M = loss_M.masked_scatter(chosen_M, losses_M)
        cell_M = channels_M * 2 + (kept_M > 0.5)
        zeros = torch.zeros(2 * len(CHANNELS))
        sums, counts = zeros.index_add(0, cell_M, loss_M), zeros.index_add(0, cell_M, torch.ones_like(loss_M))
        return torch.as_tensor((sums / counts.clamp(min=1)).sum() / (counts > 0).sum())

    @torch.no_grad()
    def written(self, channels_M: Tensor, kept_M: Tensor) -> Tensor:
        """What to add to the stream of the upper layer so that the probe reads `TOLD` more or less, [M, W]."""
        directions_MW = self.read.weight[channels_M]
        size_M = TOLD * (2 * (kept_M > 0.5).float() - 1) / directions_MW.square().sum(-1)
        upper: Any = self.even[1]
        return torch.as_tensor(size_M[:, None] * directions_MW * (upper.running_var + upper.eps).sqrt())


class Teaching(Objective[Passages, Passages]):
    """Cross-entropy of the verdicts over the vocabulary, and the hints."""

    def __init__(self, student: Student, config: TeachingConfig, *, dtype: torch.dtype) -> None:
        """dtype: of the computation; bfloat16 where the processor computes it."""
        self.student, self.config = student, config
        self._dtype = dtype
        use_plain_attention(student.network)
        self.probe = Probe(student.network.config.hidden_size)
        self._told, self._rng = 0.0, random.Random(0)

    def parts(self) -> dict[str, Part]:
        """The layers up to the upper probe, those above it, and the probe: gradients are bounded part by part."""
        base: Any = self.student.network.base_model
        last = self.config.layers_after_upper
        return {
            "judge": Part(nn.ModuleList(base.layers[:-last]), self.config.learning_rate),
            "last": Part(nn.ModuleList([*base.layers[-last:], base.norm]), self.config.learning_rate),
            "probe": Part(self.probe, self.config.probe_learning_rate),
        }

    def prepare(self, batch: Passages, context: StepContext[Passages]) -> Prepared[Passages]:
        """One optimiser step, in microbatches of similar length."""
        self._told = max(0.0, 1 - context.step / self.config.told_steps) if self.config.told_steps else 0.0
        self._rng = random.Random(f"told-{context.seed}-{context.step}")
        rows = pack([_width(one.length) for one in batch], self.config.max_tokens_per_microbatch, OVERHEAD["cpu"])
        microbatches = [[batch[i] for i in chosen] for chosen in rows]
        return Prepared(minibatches=[Minibatch(microbatches, float(len(batch)))])

    def loss(self, microbatch: Passages, denominator: float) -> Iterator[Loss]:
        """Means over the minibatch; the questions of a passage share its weight."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            laid = lay(microbatch)
            placed = [
                (row, column, hint) for row, one in enumerate(microbatch) for column, hint in laid.hints(row, one)
            ]
            verdicts_NV, lower_BTW, upper_BTW = self._read(laid, self._told_of(placed))
        asked = [(one, one.weight / len(passage.questions)) for passage in microbatch for one in passage.questions]
        labels_N2 = torch.tensor([one.label_ids for one, _ in asked])
        target_N = torch.sigmoid(torch.tensor([one.margin for one, _ in asked]))
        weights_N = torch.tensor([weight for _, weight in asked]) / denominator
        logprobs_N2 = verdicts_NV.float().log_softmax(-1).gather(1, labels_N2)
        odds_N, lost_N = logprobs_N2[:, 0] - logprobs_N2[:, 1], -logprobs_N2.logsumexp(1)
        verdict_N = functional.binary_cross_entropy_with_logits(odds_N, target_N, reduction="none")
        verdict = (weights_N * verdict_N).sum()
        # At first nearly all probability is on other words, which would drown everything else.
        loss = verdict + self.config.mass * (weights_N * lost_N).sum()
        hints = self._hints(placed, lower_BTW, upper_BTW) * len(microbatch) / denominator
        metrics = {"loss/mean": verdict.detach(), "hints/mean": hints.detach()}
        yield loss + self.config.hints * hints, metrics

    def _bias(self, mask_BTT: Tensor) -> Tensor:
        bias_BTT = torch.zeros(mask_BTT.shape, dtype=self._dtype)
        return bias_BTT.masked_fill_(~mask_BTT, torch.finfo(self._dtype).min)[:, None]

    def _hints(self, placed: Sequence[Placed], lower_BTW: Tensor, upper_BTW: Tensor) -> Tensor:
        if not placed:
            return torch.zeros(())
        rows_M, columns_M, channels_M, kept_M = _as_tensors(placed)
        lower_MW, upper_MW = lower_BTW[rows_M, columns_M], upper_BTW[rows_M, columns_M]
        return torch.as_tensor(self.probe(lower_MW, upper_MW, channels_M, kept_M))

    def _told_of(self, placed: Sequence[Placed]) -> list[Placed]:
        """The hints whose truths are written into the stream: those of the upper layer, in some rows."""
        told = {row for row in sorted({row for row, _, _ in placed}) if self._rng.random() < self._told}
        return [one for one in placed if one[0] in told and one[2].channel >= len(LOWER)]

    def _read(self, laid: Laid, told: Sequence[Placed]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits after the last token of each question, and the stream at the two layers of the probe."""
        network: Any = self.student.network
        streams: dict[str, Tensor] = {}

        def keep_lower(_: nn.Module, __: Any, stream_BTW: Tensor) -> None:
            streams["lower"] = stream_BTW

        def keep_upper(_: nn.Module, __: Any, stream_BTW: Tensor) -> Tensor:
            streams["upper"] = stream_BTW
            if not told:
                return stream_BTW
            rows_M, columns_M, channels_M, kept_M = _as_tensors(told)
            written_BTW = torch.zeros_like(stream_BTW)
            written_MW = self.probe.written(channels_M, kept_M).to(stream_BTW.dtype)
            return stream_BTW + written_BTW.index_put_((rows_M, columns_M), written_MW, accumulate=True)

        layers = network.base_model.layers
        hooks = (
            layers[len(layers) - 1 - self.config.layers_after_lower].register_forward_hook(keep_lower),
            layers[len(layers) - 1 - self.config.layers_after_upper].register_forward_hook(keep_upper),
        )
        try:
            read = network.base_model(
                input_ids=laid.ids_BT,
                position_ids=laid.positions_BT,
                attention_mask=self._bias(laid.mask_BTT),
                use_cache=False,
            )
        finally:
            for hook in hooks:
                hook.remove()
        return network.lm_head(read.last_hidden_state[laid.ends_N]), streams["lower"], streams["upper"]


def _as_tensors(placed: Sequence[Placed]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, columns, channels and truths of hints, [M] each."""
    return (
        torch.tensor([row for row, _, _ in placed]),
        torch.tensor([column for _, column, _ in placed]),
        torch.tensor([hint.channel for _, _, hint in placed]),
        torch.tensor([hint.kept for _, _, hint in placed]),
    )


@dataclass(frozen=True, slots=True)
class Laid:
    """Passages as tensors; N questions in the order of the passages."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_BTT: Tensor
    """Whether a token (second axis) sees another (third)."""
    ends_N: tuple[Tensor, Tensor]
    """Row and column of the last token of each question."""
    starts: tuple[tuple[int, ...], ...]
    """By passage: the column at which each question begins."""

    def hints(self, row: int, passage: Passage) -> Iterator[tuple[int, Hint]]:
        """Columns and hints of a passage in this row."""
        yield from ((hint.place, hint) for hint in passage.hints)
        for start, asked in zip(self.starts[row], passage.questions, strict=True):
            yield from ((start + hint.place, hint) for hint in asked.hints)


def _width(length: int) -> int:
    """A few widths only: kernels are prepared once for a shape, which takes longer than a step."""
    return math.ceil(length / WIDTH) * WIDTH


def lay(passages: Passages) -> Laid:
    """Questions one after another behind their context. Each sees the context and itself, at the positions that it
    would have alone, so that its verdict is the one that an engine gives."""
    width = _width(max(one.length for one in passages))
    ids_BT = torch.zeros(len(passages), width, dtype=torch.long)
    positions_BT, parts_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -1)
    rows, columns, starts = [], [], []
    for row, one in enumerate(passages):
        start, begun = 0, []
        for part, ids in enumerate((one.context, *(asked.token_ids for asked in one.questions))):
            end, offset = start + len(ids), len(one.context) if part else 0
            ids_BT[row, start:end] = torch.tensor(ids)
            positions_BT[row, start:end] = torch.arange(offset, offset + len(ids))
            parts_BT[row, start:end] = part
            if part:
                rows.append(row)
                columns.append(end - 1)
                begun.append(start)
            start = end
        starts.append(tuple(begun))
    same_BTT = parts_BT[:, :, None] == parts_BT[:, None, :]
    sees_BTT = same_BTT | (parts_BT == 0)[:, None, :]
    mask_BTT = sees_BTT & torch.ones(width, width, dtype=torch.bool).tril()
    return Laid(ids_BT, positions_BT, mask_BTT, (torch.tensor(rows), torch.tensor(columns)), tuple(starts))
