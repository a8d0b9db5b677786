"""A small judge taught by a large one: the same questions, the same one-token verdicts, fewer layers.

    lessons = [lesson for pair in pairs for lesson in both_orders(pair.question, pair.swapped, pair.margin)]
    student = Student.load("models/judge", layers=(0, 2, 4))
    report = distil(student, lessons, DistilConfig(epochs=2))
    student.save(Path("models/small-judge"))
    decision = accept(student_verdicts, teacher_verdicts, held_out, taught=report.taught)

A student that agrees with its teacher on answers of other models may still fail on the policy's answers, so acceptance
tests it on those only (`solon.feedback.trials.acceptance`).

B rows of a microbatch, 2 labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from learners.core.course import CourseConfig, CourseReport, run_course
from learners.core.objective import Loss, Minibatch, Objective, Part, Prepared, StepContext
from learners.core.packing import by_length
from learners.networks.student import Student
from solon.errors import InputError
from solon.feedback.questions import Question, question_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A question, and the teacher's margin. Lesson(question=Question((3, 14, 15), (9, 2)), margin=1.7)"""

    question: Question
    margin: float
    """The teacher's calibrated log-odds of the first label over the second, nats."""
    is_adversarial: bool = False
    """Made to mislead: an attack on the judge, or an answer with one word spoilt."""
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
    """The two lessons of a pair: a margin averaged over both orders has no position bias, and neither has a student
    that learns it in both orders. margin: of the answer that `shown` shows first."""
    return (
        Lesson(question=shown, margin=margin, is_adversarial=is_adversarial, weight=weight),
        Lesson(question=swapped, margin=-margin, is_adversarial=is_adversarial, weight=weight),
    )


Lessons = Sequence[Lesson]


class DistilConfig(CourseConfig):
    """How a student learns. `DistilConfig(learning_rate=2e-5, epochs=2)`"""

    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate (AdamW)."""
    epochs: int = Field(2, ge=1)
    """Passes over the lessons."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises from nearly nothing."""
    regression: float = Field(0.1, ge=0)
    """Weight of the margin regression. The likelihood hardly distinguishes 3 nats from 6; escalation, votes and
    selection use that difference."""
    margin_clip: float = Field(6.0, gt=0)
    """Nats beyond which the regression treats margins as equal."""
    mass: float = Field(1.0, ge=0)
    """Weight of -log of the probability on both labels together: without it a student may answer anything but a
    verdict. 1 makes it and the likelihood the cross-entropy over the vocabulary."""
    hard_share: float | None = Field(0.15, gt=0, lt=1)
    """Share of the lessons that is adversarial or nearly a tie; excess ones are dropped, missing ones repeated. None:
    lessons unchanged."""
    near_tie: float = Field(1.0, gt=0)
    """A margin of fewer nats than this is nearly a tie."""

    def is_hard(self, lesson: Lesson) -> bool:
        """Adversarial, or nearly a tie."""
        return lesson.is_adversarial or abs(lesson.margin) < self.near_tie


def compose(lessons: Sequence[Lesson], config: DistilConfig) -> list[Lesson]:
    """The lessons with the wanted share of hard ones. Raises InputError when one kind is missing."""
    if not lessons:
        raise InputError("got no lessons, expected the teacher's verdicts on some questions")
    if config.hard_share is None:
        return list(lessons)
    hard = [lesson for lesson in lessons if config.is_hard(lesson)]
    plain = [lesson for lesson in lessons if not config.is_hard(lesson)]
    if not hard or not plain:
        raise InputError(
            f"got {len(hard)} hard lessons (adversarial, or within {config.near_tie:g} nats of a tie) and {len(plain)} "
            f"plain ones, expected both for hard_share = {config.hard_share:g}; add the missing kind, or set "
            "hard_share = None"
        )
    wanted = max(1, round(config.hard_share / (1 - config.hard_share) * len(plain)))
    order = np.random.default_rng(config.seed).permutation(len(hard))
    return [*plain, *(hard[order[n % len(hard)]] for n in range(wanted))]


class DistilObjective(Objective[Lessons, Lessons]):
    """The student's verdicts against the teacher's calibrated log-odds."""

    def __init__(self, student: Student, config: DistilConfig) -> None:
        self.student, self.config = student, config

    def parts(self) -> dict[str, Part]:
        """The whole student."""
        return {"student": Part(self.student.network, self.config.learning_rate)}

    def prepare(self, batch: Lessons, context: StepContext[Lessons]) -> Prepared[Lessons]:
        """One optimiser step on the lessons, in microbatches of similar length."""
        sizes = [len(lesson.question.prompt_token_ids) for lesson in batch]
        rows = by_length(sizes, self.config.max_tokens_per_microbatch, self.ranks.size)
        microbatches = [[batch[i] for i in some] for some in rows]
        return Prepared(minibatches=[Minibatch(microbatches, sum(lesson.weight for lesson in batch))])

    def cost(self, microbatch: Lessons) -> float:
        return len(microbatch) * max(len(lesson.question.prompt_token_ids) for lesson in microbatch)

    def loss(self, microbatch: Lessons, denominator: float) -> Iterator[Loss]:
        """`distil_loss` over the weights of the minibatch."""
        logprobs_B2 = self.student([lesson.question for lesson in microbatch])
        margins_B = logprobs_B2.new_tensor([lesson.margin for lesson in microbatch])
        weights_B = logprobs_B2.new_tensor([lesson.weight for lesson in microbatch])
        loss = distil_loss(logprobs_B2, margins_B, weights_B, self.config) / denominator
        yield loss, {"loss/mean": loss.detach()}


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
class DistilReport(CourseReport):
    """The result of a distillation."""

    lessons: int
    hard_share: float
    taught: frozenset[str] = field(repr=False)
    """Digests of all questions: held-out ones must not be among them."""


def distil(
    student: Student, lessons: Lessons, config: DistilConfig, *, tick: Callable[[float], None] = lambda _: None
) -> DistilReport:
    """Teach the student, in place; it is divided among its ranks, which all call this together. The same student,
    lessons and configuration on one machine give the same result.

    tick: called after every step with the share of the steps that is done.

    Raises InputError when lessons are missing, RunFailedError when the loss is not finite.
    """
    lessons = compose(lessons, config)
    student.train()
    objective = DistilObjective(student, config)
    objective.divide(student.ranks)
    try:
        report = run_course(objective, lessons, config, tick=tick)
    finally:
        student.eval()
    return DistilReport(
        steps=report.steps,
        first_loss=report.first_loss,
        last_loss=report.last_loss,
        lessons=len(lessons),
        hard_share=sum(map(config.is_hard, lessons)) / len(lessons),
        taught=frozenset(question_digest(lesson.question) for lesson in lessons),
    )
