"""A small judge that is taught by a large one: the same questions, the same one-token verdicts, fewer layers.

    lessons = [lesson for pair in pairs for lesson in both_orders(pair.question, pair.swapped, pair.margin)]
    student = Student.load("models/judge", layers=(0, 2, 4))
    report = distil(student, lessons, DistilConfig(epochs=2))
    student.save(Path("models/small-judge"))
    decision = accept(student_verdicts, teacher_verdicts, held_out, taught=report.taught)

Lessons are tokenised questions with the teacher's calibrated log-odds, so that no template is known here and what is
written is an ordinary language model: engines load it as a judge, with the prompts that the teacher had. A student that
agrees with its teacher on answers that somebody else wrote may still fail on the policy's, so it is accepted on those
alone (`solon.feedback.trials.acceptance`).
"""

# N lessons or pairs, B rows of a microbatch, T token positions, V vocabulary, 2 labels

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from learners.config import LearnConfig
from learners.loading import choose_device, load_model, quiet
from learners.optimizer import Optimizer
from learners.reward_model import microbatches
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import is_quantised
from solon.engines.model_files import copy_companions, repair_generation_config, warn_of_dropped
from solon.errors import InputError
from solon.feedback.questions import Question, question_digest
from solon.host.file_modes import widen


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A question, and what the teacher says to it. Lesson(question=Question((3, 14, 15), (9, 2)), margin=1.7)"""

    question: Question
    margin: float
    """The teacher's calibrated log-odds of the first label over the second, nats."""
    is_adversarial: bool = False
    """Made to mislead: an attack on the judge, an answer spoilt in one word."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.question.label_ids) != 2 or not self.question.prompt_token_ids:
            raise ValueError(f"a lesson with labels {self.question.label_ids}: expected token ids and two labels")
        if not (math.isfinite(self.margin) and 0 < self.weight < math.inf):
            raise ValueError(
                f"a lesson with margin {self.margin} and weight {self.weight}: expected numbers, weight > 0"
            )


def both_orders(
    shown: Question, swapped: Question, margin: float, *, is_adversarial: bool = False, weight: float = 1.0
) -> tuple[Lesson, Lesson]:
    """The two lessons of a pair: a margin of both orders together has no position bias, and a student that learns it
    in both orders learns none. margin: of the answer that `shown` shows first."""
    return (
        Lesson(question=shown, margin=margin, is_adversarial=is_adversarial, weight=weight),
        Lesson(question=swapped, margin=-margin, is_adversarial=is_adversarial, weight=weight),
    )


class DistilConfig(BaseModel):
    """How a student learns. `DistilConfig(learning_rate=2e-5, epochs=2)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate (AdamW); it falls linearly to a tenth."""
    epochs: int = Field(2, ge=1)
    """Passes over the lessons."""
    batch: int = Field(32, ge=1)
    """Lessons of one optimiser step."""
    regression: float = Field(0.1, ge=0)
    """Weight of the margin regression. The likelihood hardly tells 3 nats from 6; what escalates, votes or selects by
    how sure a judge is does."""
    margin_clip: float = Field(6.0, gt=0)
    """Nats beyond which the regression does not tell margins apart."""
    mass: float = Field(1.0, ge=0)
    """Weight of -log of the probability on both labels together: without it a student may say anything but a
    verdict. 1 makes it and the likelihood the cross-entropy over the vocabulary."""
    hard_share: float | None = Field(0.15, gt=0, lt=1)
    """Share of the lessons that is adversarial or nearly a tie; too many are thinned out, too few repeated. None:
    lessons as they come."""
    near_tie: float = Field(1.0, gt=0)
    """A margin of fewer nats than this is nearly a tie."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises from nearly nothing."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of the matrices."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_tokens_per_microbatch: int = Field(16384, ge=16)
    """Padded tokens in one forward pass: bounds memory, does not change the result."""
    seed: int = Field(0, ge=0)
    """Seed of the choice and the order of the lessons."""

    def schedule(self, steps: int) -> LearnConfig:
        """What the optimiser goes by when there are so many steps."""
        return LearnConfig(
            weight_decay=self.weight_decay,
            adam_beta2=0.999,
            max_grad_norm=self.max_grad_norm,
            warmup_steps=min(int(self.warmup_share * steps), steps - 1),
            schedule="linear",
            schedule_steps=steps,
        )


def compose(lessons: Sequence[Lesson], config: DistilConfig) -> list[Lesson]:
    """The lessons with the wanted share of hard ones. Raises InputError when one kind is missing."""
    if not lessons:
        raise InputError("got no lessons, expected the teacher's verdicts on some questions")
    if config.hard_share is None:
        return list(lessons)
    hard = [lesson for lesson in lessons if lesson.is_adversarial or abs(lesson.margin) < config.near_tie]
    plain = [lesson for lesson in lessons if not (lesson.is_adversarial or abs(lesson.margin) < config.near_tie)]
    if not hard or not plain:
        raise InputError(
            f"got {len(hard)} hard lessons (adversarial, or within {config.near_tie:g} nats of a tie) and {len(plain)} "
            f"plain ones, expected both for hard_share = {config.hard_share:g}; add the missing kind, or set "
            "hard_share = None"
        )
    wanted = max(1, round(config.hard_share / (1 - config.hard_share) * len(plain)))
    order = np.random.default_rng(config.seed).permutation(len(hard))
    return [*plain, *(hard[order[n % len(hard)]] for n in range(wanted))]


class Student(nn.Module):
    """A language model that answers with one label. `Student.load("models/judge", layers=(0, 2))`"""

    def __init__(self, network: Any, *, source: Path | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self._source = source
        self._dtype = dtype

    @classmethod
    def load(cls, model: str | Path, *, layers: Sequence[int] | None = None, device: str = "auto") -> Self:
        """From a Hugging Face directory; `layers`: only these of its layers, in this order. Raises InputError."""
        if Path(model).is_dir() and is_quantised(EngineConfig(model=str(model))):
            raise InputError(
                f"{str(model)!r} is quantised, expected plain weights to teach; quantise the student after"
            )
        network, dtype = load_model(str(model), choose_device(device))
        if layers is not None:
            _keep_layers(network, layers)
        return cls(network, source=Path(model), dtype=dtype)

    def save(self, directory: Path) -> None:
        """As engines load it, in the dtype of the model that it started from and with that model's tokenizer."""
        with quiet():
            network = copy.deepcopy(self.network).to(self._dtype)
            warn_of_dropped(repair_generation_config(network))
            network.save_pretrained(directory)
        widen(directory)
        if self._source is not None:
            copy_companions(self._source, directory)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, questions: Sequence[Question]) -> Tensor:
        """Log-probs of the labels, float32, [B, 2]."""
        device = next(self.parameters()).device
        width = max(len(question.prompt_token_ids) for question in questions)
        # On the left, so that the last position is everyone's verdict and the head runs once for each row.
        gaps = [width - len(question.prompt_token_ids) for question in questions]
        ids_BT = torch.tensor([[0] * gap + [*q.prompt_token_ids] for gap, q in zip(gaps, questions, strict=True)])
        mask_BT = torch.arange(width)[None] >= torch.tensor(gaps)[:, None]
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        logits_BV = self.network(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.long().to(device),
            position_ids=positions_BT.to(device),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        labels_B2 = torch.tensor([q.label_ids for q in questions], device=device)
        return torch.as_tensor(logits_BV.float().log_softmax(-1).gather(1, labels_B2))


def _keep_layers(network: Any, kept: Sequence[int]) -> None:
    layers = getattr(network.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise InputError(f"a {type(network).__name__} has no list of layers to choose from; leave `layers` out")
    if not kept or any(not 0 <= index < len(layers) for index in kept) or len(set(kept)) < len(kept):
        raise InputError(f"layers: got {list(kept)}, expected different ones from 0 to {len(layers) - 1}")
    network.base_model.layers = nn.ModuleList(layers[index] for index in kept)
    network.config.num_hidden_layers = len(kept)
    if getattr(network.config, "layer_types", None):
        network.config.layer_types = [network.config.layer_types[index] for index in kept]


def distil_loss(logprobs_B2: Tensor, margins_B: Tensor, weights_B: Tensor, config: DistilConfig) -> Tensor:
    """Sum over rows of weight * (cross-entropy against the teacher's p + regression of the margin + lost mass).

    logprobs_B2: the student's, of both labels. margins_B: the teacher's log-odds of the first, p = s(margin).
    """
    odds_B, clip = logprobs_B2[:, 0] - logprobs_B2[:, 1], config.margin_clip
    likelihood_B = functional.binary_cross_entropy_with_logits(odds_B, margins_B.sigmoid(), reduction="none")
    regression_B = functional.smooth_l1_loss(odds_B.clamp(-clip, clip), margins_B.clamp(-clip, clip), reduction="none")
    lost_B = -logprobs_B2.logsumexp(1)
    return (weights_B * (likelihood_B + config.regression * regression_B + config.mass * lost_B)).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilReport:
    """What became of a distillation."""

    steps: int
    lessons: int
    hard_share: float
    first_loss: float
    """Mean loss of the first step, nats."""
    last_loss: float
    """The same of the last tenth of the steps."""
    taught: frozenset[str] = field(repr=False)
    """Digests of all questions: held-out ones must not be among them."""


def distil(student: Student, lessons: Sequence[Lesson], config: DistilConfig) -> DistilReport:
    """Teach the student, in place. The same student, lessons and config on one machine give the same result.

    Raises InputError when lessons are missing, or the loss is not finite.
    """
    lessons = compose(lessons, config)
    per_epoch = math.ceil(len(lessons) / config.batch)
    steps = per_epoch * config.epochs
    optimizer = Optimizer(student.network, config.learning_rate, config.schedule(steps))
    rng = np.random.default_rng(config.seed)
    student.train()
    losses = []
    for step in range(steps):
        if step % per_epoch == 0:
            order_N = rng.permutation(len(lessons))
        start = step % per_epoch * config.batch
        losses.append(_backward(student, [lessons[i] for i in order_N[start : start + config.batch]], config))
        if not math.isfinite(losses[-1]):
            raise InputError(f"the loss is {losses[-1]} at step {step}; lower learning_rate")
        optimizer.clip()
        optimizer.apply(step)
    student.eval()
    tail = losses[-math.ceil(len(losses) / 10) :]
    hard = sum(lesson.is_adversarial or abs(lesson.margin) < config.near_tie for lesson in lessons)
    return DistilReport(
        steps=steps,
        lessons=len(lessons),
        hard_share=hard / len(lessons),
        first_loss=losses[0],
        last_loss=sum(tail) / len(tail),
        taught=frozenset(question_digest(lesson.question) for lesson in lessons),
    )


def _backward(student: Student, batch: Sequence[Lesson], config: DistilConfig) -> float:
    """Accumulate the gradient of the batch's mean loss; returns the loss."""
    total, loss = sum(lesson.weight for lesson in batch), 0.0
    for rows in microbatches([len(x.question.prompt_token_ids) for x in batch], config.max_tokens_per_microbatch):
        some = [batch[i] for i in rows]
        logprobs_B2 = student([lesson.question for lesson in some])
        margins_B = logprobs_B2.new_tensor([lesson.margin for lesson in some])
        weights_B = logprobs_B2.new_tensor([lesson.weight for lesson in some])
        part = distil_loss(logprobs_B2, margins_B, weights_B, config) / total
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.item()
    return loss


@torch.no_grad()
def label_logprobs(student: Student, questions: Sequence[Question], *, max_tokens: int = 16384) -> NDArray[np.float64]:
    """What the student says, log-probs of the labels, [N, 2]."""
    found = np.zeros((len(questions), 2))
    for rows in microbatches([len(question.prompt_token_ids) for question in questions], max_tokens):
        found[rows] = student([questions[i] for i in rows]).double().cpu().numpy()
    return found
