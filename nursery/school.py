"""How a judge and a policy are taught, step by step; every step is a fixed amount of work.

A judge is told more than its verdicts: a probe on the stream before its last layer must say, at every word of
an answer, which principles the answer would keep if it ended there. One verdict at the end of a hundred
tokens is a faint signal; this one is dense, and the probe is thrown away afterwards.
"""

# B examples, N questions, M hints, C channels, W hidden width

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from nursery.language import WordEncoder
from nursery.lessons import (
    NUM_CHANNELS,
    Examiner,
    Example,
    Hints,
    Mix,
    Packed,
    as_conversations,
    converse,
    draw_example,
    draw_plain,
    drill,
    pack,
)
from nursery.model import Shape, TinyModel, View
from nursery.optim import Schooling

Tick = Callable[[float], None]
"""Called with the share of the work that is done."""

DRILL_ROWS = 32
EASY_UNTIL = 0.4
POOL_BATCHES = 8
"""Examples are drawn for so many batches at once and sorted by length, so that little is padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is taught to whom, and for how long."""

    shape: Shape
    steps: int
    batch: int
    seed: int
    muon_lr: float = 0.01
    drilled: float = 0.4
    """Share of the steps that come with drill."""
    questions: int = 2
    """Questions about each example; a random choice of those that apply."""


class Probe(nn.Module):
    """Reads hints off the stream before the last layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.read = nn.Linear(hidden, NUM_CHANNELS)

    def forward(self, stream_BTW: Tensor, hints: Hints) -> Tensor:
        """Mean loss of the hints; each truth of each channel weighs the same, however rare it is."""
        x_MW = stream_BTW[hints.places_M]
        x_MW = x_MW * torch.rsqrt(x_MW.pow(2).mean(-1, keepdim=True) + 1e-6)
        logits_M = self.read(x_MW).gather(1, hints.channels_M[:, None])[:, 0]
        loss_M = functional.binary_cross_entropy_with_logits(logits_M, hints.truths_M, reduction="none")
        cell_M = hints.channels_M * 2 + hints.truths_M.long()
        zeros = torch.zeros(2 * NUM_CHANNELS)
        sums, counts = zeros.index_add(0, cell_M, loss_M), zeros.index_add(0, cell_M, torch.ones_like(loss_M))
        return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum()


def teach_judge(course: Course, tick: Tick) -> TinyModel:
    """A judge that gives the oracles' verdicts."""
    torch.manual_seed(course.seed)
    rng = random.Random(f"judge-{course.seed}")
    examiner = Examiner()
    model, probe = TinyModel(course.shape), Probe(course.shape.hidden)
    schooling = Schooling(model, probe, steps=course.steps, muon_lr=course.muon_lr)
    while schooling.step_number < course.steps:
        for batch in _batches(rng, examiner, course, schooling.progress):
            packed = pack(batch, pad_id=examiner.encoder.pad_id)
            loss = _judge_loss(model, probe, packed)
            if schooling.progress < course.drilled:
                loss = loss + _drill_loss(model, probe, rng, examiner)
            schooling.update(loss)
            tick(schooling.progress)
            if schooling.step_number == course.steps:
                break
    return model


def verdicts(model: TinyModel, packed: Packed) -> Tensor:
    """Log-odds [N] of the first label over the second."""
    _, view = _views(model, packed)
    logits_NV = model.read(model.inner(packed.ids_BT, view), replace(view, places_N=packed.places_N))
    labels_N2 = logits_NV.gather(1, packed.labels_N2)
    return torch.as_tensor(labels_N2[:, 0] - labels_N2[:, 1])


def teach_policy(course: Course, tick: Tick) -> TinyModel:
    """A policy that speaks the language and keeps each principle now and then."""
    torch.manual_seed(course.seed)
    rng = random.Random(f"policy-{course.seed}")
    encoder = WordEncoder()
    model = TinyModel(course.shape)
    schooling = Schooling(model, steps=course.steps, muon_lr=course.muon_lr)
    while schooling.step_number < course.steps:
        pool = converse(rng, encoder, course.batch * POOL_BATCHES)
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        for start in _shuffled_starts(rng, len(pool), course.batch):
            lesson = as_conversations(pool[start : start + course.batch], pad_id=encoder.pad_id)
            rows_N, columns_N = torch.where(lesson.targets_BT >= 0)
            places_N = rows_N, columns_N
            view = model.view(torch.arange(lesson.ids_BT.shape[1])[None])
            stream = model.inner(lesson.ids_BT, view)
            logits_NV = model.read(stream, replace(view, places_N=places_N))
            schooling.update(functional.cross_entropy(logits_NV, lesson.targets_BT[places_N]))
            tick(schooling.progress)
            if schooling.step_number == course.steps:
                break
    return model


def _judge_loss(model: TinyModel, probe: Probe, packed: Packed) -> Tensor:
    _, view = _views(model, packed)
    stream_BTW = model.inner(packed.ids_BT, view)
    logits_NV = model.read(stream_BTW, replace(view, places_N=packed.places_N))
    labels_N2 = logits_NV.log_softmax(-1).gather(1, packed.labels_N2)
    first_N, second_N = labels_N2.unbind(1)
    verdict_loss = -(packed.targets_N * first_N + (1 - packed.targets_N) * second_N).mean()
    return torch.as_tensor(verdict_loss + probe(stream_BTW, packed.hints))


def _drill_loss(model: TinyModel, probe: Probe, rng: random.Random, examiner: Examiner) -> Tensor:
    ids_BT, hints = drill(rng, examiner.encoder)
    view = model.view(torch.arange(ids_BT.shape[1])[None])
    facts = probe(model.inner(ids_BT, view), hints)
    plain = [replace(draw_plain(rng, examiner), questions=(), targets=()) for _ in range(DRILL_ROWS)]
    packed = pack(plain, pad_id=examiner.encoder.pad_id)
    ids_BT, view = _views(model, packed)
    return torch.as_tensor(facts + probe(model.inner(ids_BT, view), packed.hints))


def _views(model: TinyModel, packed: Packed) -> tuple[Tensor, View]:
    return packed.ids_BT, model.view(packed.positions_BT, packed.mask_BTT)


def _batches(rng: random.Random, examiner: Examiner, course: Course, progress: float) -> list[list[Example]]:
    """Single clean answers first, then more and more pairs and spoilt ones."""
    ease = max(0.0, 1 - progress / EASY_UNTIL)
    mix = Mix(pairwise=0.65 - 0.5 * ease, spoilt=0.4 - 0.3 * ease)
    drawn = (draw_example(rng, examiner, mix) for _ in range(course.batch * POOL_BATCHES))
    pool = sorted((_some_questions(rng, e, course.questions) for e in drawn), key=lambda e: e.length)
    return [pool[s : s + course.batch] for s in _shuffled_starts(rng, len(pool), course.batch)]


def _shuffled_starts(rng: random.Random, number: int, batch: int) -> list[int]:
    starts = list(range(0, number, batch))
    rng.shuffle(starts)
    return starts


def _some_questions(rng: random.Random, example: Example, number: int) -> Example:
    chosen = sorted(rng.sample(range(len(example.questions)), min(number, len(example.questions))))
    return replace(
        example,
        questions=tuple(example.questions[i] for i in chosen),
        targets=tuple(example.targets[i] for i in chosen),
        principles=tuple(example.principles[i] for i in chosen),
    )
