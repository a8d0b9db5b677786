"""Rollouts laid out as rectangles of tokens for a forward pass.

B rows, T token positions of a row, M response tokens of a microbatch, N of the batch.

A row is one prompt followed by the answers to it that share it:

    p p p p a a a b b        answers a and b see the prompt and themselves, never each other

so that a prompt is run once for several answers. A row with one answer is plain causal text and needs no
mask: padding is on the right, where causal attention never looks. A microbatch with a shared row says what its rows
hold: short ones by masks for all of them (a layer with a window needs one of its own: the window counts positions of
the conversation, not columns of the row), long ones by a plan of their segments (`learners.core.segments`). The last
token of an answer predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.core.batch import Batch
from learners.core.ranks import divided
from learners.core.segments import plan_of
from learners.core.varlen import Segment

MaskForm = Literal["full", "windowed", "by_kind"]
"""A model's `attention_mask`: one mask for all layers, without or with the window, or a mapping from the kind of layer
to its mask, for models with layers of both kinds."""

DENSE = 768
"""Longest row with a mask. Attention under one computes the whole square of the row, and is one call for all rows,
which is faster for short ones."""

OVERHEAD = {"cpu": 192, "cuda": 2**20}
"""Padded positions that take as long as a further microbatch. A processor reads weights and gradients once more, which
takes as long as some 200 positions whatever the size of the model; a GPU is filled before anything else."""


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and the answers that share it."""

    group: int
    rollouts: tuple[int, ...]
    length: int
    """Its token positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """One forward pass. A model's output at flat position `predict_M[m]` of B x T predicts the response token
    `index_M[m]` of the batch."""

    input_BT: Tensor
    position_BT: Tensor | None
    """None: 0..T-1 in every row."""
    mask_B1TT: Tensor | dict[str, Tensor] | None
    """True where the query (third axis) sees the key, by kind of layer where they differ; or a plan of the segments,
    int64; None: the model's own causal mask."""
    predict_M: Tensor
    target_M: Tensor
    """Ids of the response tokens."""
    index_M: Tensor
    place_M: Tensor
    """Tokens of the same answer before each of them."""
    used: int
    """Positions of the B x T that are not padding."""

    @property
    def padded(self) -> int:
        return self.input_BT.numel()

    @property
    def num_tokens(self) -> int:
        """Response tokens in it."""
        return len(self.index_M)

    def model_inputs(self) -> dict[str, Tensor | dict[str, Tensor] | bool | None]:
        """Keyword arguments of a Hugging Face decoder's forward."""
        return {
            "input_ids": self.input_BT,
            "position_ids": self.position_BT,
            "attention_mask": self.mask_B1TT,
            "use_cache": False,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a model supports and its costs. `Layout(max_tokens=4096, share=True, hidden=256)`"""

    max_tokens: int
    """Padded positions of a microbatch; a longer row gets a microbatch of its own."""
    share: bool = False
    """Answers may share a row."""
    hidden: int = 1024
    """Width of the model: weighs attention against the rest."""
    overhead: int = OVERHEAD["cuda"]
    """Padded positions that cost as much as a further microbatch."""
    mask: MaskForm = "full"
    """Form in which the model takes the masks of shared rows."""
    window: int | None = None
    """Positions that a windowed layer sees, the token's own included."""
    ranks: int = 1
    """Processes among which microbatches are divided."""
    segments: bool = False
    """The model takes a plan of segments in place of a mask."""
    dense: int = DENSE
    """Longest row with a mask where it does."""

    def microbatches(self, batch: Batch, rollouts: Sequence[int], device: torch.device) -> list[Microbatch]:
        """The given rollouts in as few rectangles as fit, deterministically."""
        rows = self.rows(batch, rollouts)
        lengths = [row.length for row in rows]
        bins = divided(
            lambda limit: pack(lengths, limit, self.overhead),
            lambda chosen: self.work(len(chosen), max(lengths[i] for i in chosen)),
            most=self.max_tokens,
            total=sum(lengths),
            ranks=self.ranks,
        )
        return [_microbatch(batch, [rows[i] for i in chosen], device, self) for chosen in bins]

    def in_one(self, batch: Batch, rollouts: Sequence[int], device: torch.device) -> Microbatch:
        """The given rollouts in one rectangle, whatever its size."""
        return _microbatch(batch, self.rows(batch, rollouts), device, self)

    def rows(self, batch: Batch, rollouts: Iterable[int]) -> list[Row]:
        """Answers to one prompt side by side, with the number per row that minimises work."""
        by_group: dict[int, list[int]] = {}
        for rollout in sorted(rollouts):
            by_group.setdefault(int(batch.group_R[rollout]), []).append(rollout)
        rows = []
        for group, members in by_group.items():
            prompt = len(batch.prompts[group])
            answers = [int(batch.length_R[r]) - 1 for r in members]
            together = self.answers_per_row(prompt, answers)
            for first in range(0, len(members), together):
                length = prompt + sum(answers[first : first + together])
                rows.append(Row(group, tuple(members[first : first + together]), length))
        return rows

    def work(self, rows: int, width: int) -> float:
        """The work of a rectangle of tokens, in pairs of positions of one unit of width: matrix products, attention."""
        return rows * (6 * self.hidden * width + width**2 / 2)

    def cost(self, microbatch: Microbatch) -> float:
        """The work of a microbatch in comparison with others."""
        return self.work(*microbatch.input_BT.shape)

    def answers_per_row(self, prompt: int, answers: Sequence[int]) -> int:
        """How many answers should share the prompt.

        Sharing saves the prompt's matrix products (about 24 hidden^2 per token and layer). By segments it also saves
        the prompt's attention (4 hidden per pair of positions); under a mask attention costs the whole square of the
        row, where plain causal rows use half of a smaller one.
        """
        if not self.share:
            return 1
        answer = sum(answers) / len(answers)

        def work(k: int) -> float:
            if k == 1:
                pairs = (prompt + answer) ** 2 / 2
            elif self.segments and prompt + k * answer > self.dense:
                pairs = prompt**2 / (2 * k) + prompt * answer + answer**2 / 2
            else:
                pairs = (prompt + k * answer) ** 2 / k
            return 6 * self.hidden * (prompt / k + answer) + pairs

        fits = [
            k
            for k in range(1, len(answers) + 1)
            if k == 1 or max(prompt + sum(answers[i : i + k]) for i in range(0, len(answers), k)) <= self.max_tokens
        ]
        return min(fits, key=work)


def pack(lengths: Sequence[int], max_tokens: int, overhead: int = 0) -> list[list[int]]:
    """Indices in rectangles of at most `max_tokens`, longest first, ties by index; a longer item is alone.

    The sum over rectangles of their positions and of `overhead` is the smallest for rows in this order.

    >>> pack([3, 9, 4, 8], max_tokens=18)
    [[1], [3], [2], [0]]
    >>> pack([3, 9, 4, 8], max_tokens=18, overhead=2)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    cost, start_of = [0], [0]
    for end in range(1, len(order) + 1):
        best = None
        for start in range(end - 1, -1, -1):
            size = lengths[order[start]] * (end - start)
            if size > max_tokens and end - start > 1:
                break
            if best is None or cost[start] + size < best:
                best, first = cost[start] + size, start
        assert best is not None
        cost.append(best + overhead)
        start_of.append(first)
    bins: list[list[int]] = []
    end = len(order)
    while end:
        bins.append(order[start_of[end] : end])
        end = start_of[end]
    return bins[::-1]


def by_length(sizes: Sequence[int], max_tokens: int, ranks: int = 1) -> list[list[int]]:
    """Indices in batches of like size, shortest first, none of more than `max_tokens` when padded, or of one row; such
    that `ranks` processes get equal shares."""
    return divided(
        lambda limit: list(_by_length(sizes, limit)),
        lambda rows: len(rows) * max(sizes[i] for i in rows),
        most=max_tokens,
        total=sum(sizes),
        ranks=ranks,
    )


def _by_length(sizes: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    rows: list[int] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        if rows and sizes[index] * (len(rows) + 1) > max_tokens:
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows


def _microbatch(batch: Batch, rows: Sequence[Row], device: torch.device, layout: Layout) -> Microbatch:
    """The tensors of some rows, padded on the right with token 0."""
    width = max(row.length for row in rows)
    shared = any(len(row.rollouts) > 1 for row in rows)
    # A model with a window makes masks of its own for plain rows too.
    by_segments = layout.segments and width > layout.dense and (shared or width > (layout.window or width))
    input_BT = np.zeros((len(rows), width), np.int64)
    position_BT = np.tile(np.arange(width), (len(rows), 1))
    # Prompt 0, answers 1, 2, ...; padding keeps -1 and so sees only padding.
    segment_BT = np.full((len(rows), width), -1, np.int64)
    predict: list[NDArray[np.int64]] = []
    index: list[NDArray[np.int64]] = []
    plan: list[Segment] = []
    place: list[NDArray[np.int64]] = []
    for b, row in enumerate(rows):
        prompt = batch.prompts[row.group]
        input_BT[b, : len(prompt)] = prompt
        segment_BT[b, : len(prompt)] = 0
        at = len(prompt)
        if len(row.rollouts) == 1:
            plan.append((b, 0, 0, row.length))
        else:
            plan.append((b, 0, 0, at))
        for segment, rollout in enumerate(row.rollouts, start=1):
            start, length = int(batch.start_R[rollout]), int(batch.length_R[rollout])
            end = at + length - 1
            input_BT[b, at:end] = batch.token_N[start : start + length - 1]
            position_BT[b, at:end] = len(prompt) + np.arange(length - 1)
            segment_BT[b, at:end] = segment
            if len(row.rollouts) > 1:
                plan.append((b, len(prompt), at, end))
            # The first token of every answer is predicted at the end of the prompt.
            predict.append(b * width + np.concatenate([[len(prompt) - 1], np.arange(at, end)]))
            index.append(np.arange(start, start + length))
            place.append(np.arange(length))
            at = end
    index_M = np.concatenate(index)

    def tensor(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device)

    mask: Tensor | dict[str, Tensor] | None = None
    if by_segments:
        mask = plan_of(plan)
    elif shared:
        mask = _masks(tensor(segment_BT), tensor(position_BT), layout)
    return Microbatch(
        input_BT=tensor(input_BT),
        position_BT=tensor(position_BT) if shared else None,
        mask_B1TT=mask,
        predict_M=tensor(np.concatenate(predict)),
        target_M=tensor(batch.token_N[index_M]),
        index_M=tensor(index_M),
        place_M=tensor(np.concatenate(place)),
        used=sum(row.length for row in rows),
    )


def _masks(segment_BT: Tensor, position_BT: Tensor, layout: Layout) -> Tensor | dict[str, Tensor]:
    """What every position attends to, in the model's form of mask; each mask is [B, 1, T, T]."""
    full_B1TT = _sees(segment_BT)[:, None]
    if layout.mask == "full" or layout.window is None:
        return full_B1TT
    distance_BTT = position_BT[:, :, None] - position_BT[:, None, :]
    windowed_B1TT = full_B1TT & (distance_BTT < layout.window)[:, None]
    if layout.mask == "windowed":
        return windowed_B1TT
    return {"full_attention": full_B1TT, "sliding_attention": windowed_B1TT}


def _sees(segment_BT: Tensor) -> Tensor:
    """Causal, and only the prompt (segment 0) or the query's own segment; [B, T, T]."""
    query, key = segment_BT[:, :, None], segment_BT[:, None, :]
    allowed_BTT = (key == query) | ((key == 0) & (query >= 0))
    return allowed_BTT.tril()
