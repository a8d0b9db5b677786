"""A small judge taught by a large one, and the examination that it must pass."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learners.networks.student import Student, label_logprobs
from learners.objectives.distil import DistilConfig, Lesson, both_orders, compose, distil, distil_loss
from solon.errors import InputError
from solon.feedback.questions import Question, question_digest
from solon.feedback.trials.acceptance import AcceptConfig, HeldOutPair, accept
from solon.verdicts import Status, Verdict
from tests.unit.learner_builders import VOCABULARY, write_llama

LABELS = (30, 31)


def question(*ids: int) -> Question:
    return Question(ids, LABELS)


def lesson(margin: float, *, is_adversarial: bool = False) -> Lesson:
    return Lesson(question=question(3, 4), margin=margin, is_adversarial=is_adversarial)


def size_of(student: Student) -> int:
    return sum(parameter.numel() for parameter in student.parameters())


def drawn_lessons(number: int, *, seed: int = 0) -> list[Lesson]:
    """Pairs of words in both orders: from 17 on a word is good, and three nats better than one that is not."""
    rng = np.random.default_rng(seed)
    lessons: list[Lesson] = []
    for first, second in rng.integers(6, 28, (number, 2)).tolist():
        shown, swapped = question(first, 28, second, 29), question(second, 28, first, 29)
        lessons += both_orders(shown, swapped, 3.0 * (int(first >= 17) - int(second >= 17)))
    return lessons


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("teacher"))


# --- the loss ---------------------------------------------------------------------------------------------


def test_the_loss_matches_its_formula():
    # Log-probs log 0.6 and log 0.2: log-odds log 3, mass 0.8; the teacher's log-odds are 0, p = 1/2.
    logprobs_B2 = torch.tensor([[0.6, 0.2]]).log()
    margins_B, weights_B = torch.tensor([0.0]), torch.tensor([2.0])
    likelihood = -0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4)
    regression = math.log(3) - 0.5  # smooth L1 of log 3, which is more than 1
    config = DistilConfig(regression=0.5, mass=2.0)
    expected = 2 * (likelihood + 0.5 * regression - 2.0 * math.log(0.8))
    assert distil_loss(logprobs_B2, margins_B, weights_B, config).item() == pytest.approx(expected, rel=1e-5)


def test_with_all_the_mass_it_is_the_cross_entropy_over_the_vocabulary():
    logits_BV = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    logprobs_BV = logits_BV.log_softmax(-1)
    margins_B = torch.tensor([1.0, -2.0, 0.3])
    p_B = margins_B.sigmoid()
    expected = -(p_B * logprobs_BV[:, 2] + (1 - p_B) * logprobs_BV[:, 5]).sum()
    config = DistilConfig(regression=0.0, mass=1.0)
    found = distil_loss(logprobs_BV[:, [2, 5]], margins_B, torch.ones(3), config)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_regression_does_not_pull_at_margins_beyond_the_clip():
    config = DistilConfig(regression=1.0, mass=0.0, margin_clip=6.0)
    sure = torch.tensor([[0.0, -9.0]], requires_grad=True)
    far = distil_loss(sure, torch.tensor([15.0]), torch.ones(1), config)
    far.backward()
    assert sure.grad is not None
    assert sure.grad.abs().max() < 1e-3


# --- lessons ----------------------------------------------------------------------------------------------


def test_a_pair_is_taught_in_both_orders_with_opposite_margins():
    one, other = both_orders(question(1), question(2), 1.5, is_adversarial=True, weight=2.0)
    assert (one.question, one.margin, other.question, other.margin) == (question(1), 1.5, question(2), -1.5)
    assert [(x.is_adversarial, x.weight) for x in (one, other)] == [(True, 2.0)] * 2


def test_hard_lessons_have_the_share_that_was_asked_for():
    config = DistilConfig(hard_share=0.2, near_tie=1.0)

    def hard_among(lessons: Sequence[Lesson]) -> tuple[int, int]:
        composed = compose(lessons, config)
        return sum(x.is_adversarial or abs(x.margin) < 1.0 for x in composed), len(composed)

    plain = [lesson(3.0 + n) for n in range(80)]
    ties, attacks = [lesson(0.5), lesson(-0.9)], [lesson(5.0, is_adversarial=True)]
    assert hard_among([*plain, *ties, *attacks]) == (20, 100)  # repeated
    assert hard_among([*plain, *ties * 40]) == (20, 100)  # thinned out
    assert compose(plain, DistilConfig(hard_share=None)) == plain


def test_lessons_without_hard_ones_or_without_any_are_refused():
    with pytest.raises(InputError, match="0 hard lessons"):
        compose([lesson(3.0)], DistilConfig())
    with pytest.raises(InputError, match="0 plain ones"):
        compose([lesson(0.0)], DistilConfig())
    with pytest.raises(InputError, match="no lessons"):
        compose([], DistilConfig(hard_share=None))


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": math.nan},
        {"weight": 0.0},
        {"question": Question((1,), (2, 3, 4))},
        {"question": Question((), (2, 3))},
    ],
)
def test_a_lesson_that_teaches_nothing_is_refused(changes: dict[str, Any]):
    with pytest.raises(ValueError, match="expected"):
        replace(lesson(1.0), **changes)


# --- the student ------------------------------------------------------------------------------------------


def test_a_question_gets_the_same_answer_alone_and_in_a_batch(model: str):
    student = Student.load(model)
    questions = [question(3), question(4, 5, 6, 7, 8, 9), question(10, 11)]
    together = label_logprobs(student, questions)
    alone = np.concatenate([label_logprobs(student, [one]) for one in questions])
    assert together == pytest.approx(alone, abs=1e-5)
    # Transformers' result for the whole sequence, without any padding.
    network = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        logprobs_V = network(torch.tensor([[4, 5, 6, 7, 8, 9]])).logits[0, -1].log_softmax(-1)
    assert together[1] == pytest.approx(logprobs_V[list(LABELS)].numpy(), abs=1e-5)


def test_a_student_of_fewer_layers_learns_the_verdicts_and_is_saved_as_an_ordinary_model(model: str, tmp_path: Path):
    student = Student.load(model, layers=(0,))
    assert size_of(student) < size_of(Student.load(model))
    lessons = drawn_lessons(200)
    report = distil(student, lessons, DistilConfig(learning_rate=1e-2, epochs=4, batch=16))
    assert report.last_loss < report.first_loss / 2
    assert report.hard_share == pytest.approx(0.15, abs=0.01)
    assert question_digest(lessons[0].question) in report.taught

    unseen = [x for x in drawn_lessons(200, seed=1) if x.margin and question_digest(x.question) not in report.taught]
    logprobs_N2 = label_logprobs(student, [x.question for x in unseen])
    margins_N = logprobs_N2[:, 0] - logprobs_N2[:, 1]
    assert np.mean(np.sign(margins_N) == np.sign([x.margin for x in unseen])) > 0.9
    assert np.exp(logprobs_N2).sum(1).min() > 0.9  # it answers only with verdicts
    assert abs(np.mean(margins_N)) < 0.5  # both orders were taught, so that no place is favoured

    student.save(tmp_path / "student")
    settings = json.loads((tmp_path / "student" / "config.json").read_text())
    assert settings["num_hidden_layers"] == 1
    assert len(AutoTokenizer.from_pretrained(tmp_path / "student")) == VOCABULARY
    again = Student.load(tmp_path / "student")
    assert label_logprobs(again, [x.question for x in unseen]) == pytest.approx(logprobs_N2, abs=1e-4)


def test_microbatches_bound_memory_and_change_nothing(model: str):
    lessons = drawn_lessons(16)
    found = []
    for max_tokens in (16, 4096):
        student = Student.load(model)
        distil(student, lessons, DistilConfig(learning_rate=1e-3, epochs=1, max_tokens_per_microbatch=max_tokens))
        found.append(label_logprobs(student, [x.question for x in lessons]))
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_the_same_lessons_give_the_same_student(model: str):
    found = []
    for _ in range(2):
        student = Student.load(model)
        report = distil(student, drawn_lessons(8), DistilConfig(learning_rate=1e-3))
        found.append((report, label_logprobs(student, [question(3, 4, 5)]).tolist()))
    assert found[0] == found[1]


def test_a_course_of_one_step_has_a_rate():
    assert 0 < DistilConfig().rates(1)(0) <= 1


@pytest.mark.parametrize("layers", [(), (2,), (-1,), (0, 0)])
def test_missing_layers_are_refused(model: str, layers: tuple[int, ...]):
    with pytest.raises(InputError, match="expected different ones from 0 to 1"):
        Student.load(model, layers=layers)


def test_a_quantised_or_missing_model_is_no_student(model: str, tmp_path: Path):
    settings = json.loads((Path(model) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="is quantised"):
        Student.load(tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        Student.load(tmp_path / "nowhere")


# --- acceptance -------------------------------------------------------------------------------------------


def said(margin: float | None, digest: str = "") -> Verdict:
    status = Status.LOW_MASS if margin is None else Status.OK
    return Verdict(status=status, margin=margin, prompt_digests=(digest,) if digest else ())


def held_out(number: int, **changes: Any) -> list[HeldOutPair]:
    return [HeldOutPair(**{"origin": "policy", "prompt_id": str(n), **changes}) for n in range(number)]


def test_a_student_that_agrees_is_accepted_with_its_lower_bound():
    teacher = [said(2.0)] * 400
    student = [said(0.5)] * 380 + [said(-0.5)] * 20
    decision = accept(student, teacher, held_out(400))
    assert decision.accepted
    assert (decision.agreement, decision.pairs, decision.threshold, decision.invalid) == (0.95, 400, 0.9, 0.0)
    # Clopper and Pearson, one-sided 95 %: at most 28.4 errors of 400 are consistent with 20.
    assert decision.low == pytest.approx(0.928, abs=0.002)
    assert (decision.student_gold, decision.lost_high) == (None, None)


def test_a_share_above_the_threshold_is_not_enough_when_its_bound_is_below():
    teacher = [said(2.0)] * 200
    student = [said(0.5)] * 184 + [said(-0.5)] * 16  # 92 %
    decision = accept(student, teacher, held_out(200))
    assert not decision.accepted
    assert decision.low < 0.9 < decision.agreement
    assert "below 0.9" in decision.reason


def test_a_student_without_a_verdict_does_not_agree():
    teacher = [said(2.0)] * 300
    decision = accept([said(1.0)] * 270 + [said(None)] * 30, teacher, held_out(300))
    assert (decision.agreement, decision.invalid, decision.accepted) == (0.9, 0.1, False)


def test_pairs_undecided_by_the_teacher_do_not_count():
    teacher = [said(2.0)] * 250 + [said(None), said(0.0), said(math.nan)] * 20
    decision = accept([said(1.0)] * 310, teacher, held_out(310))
    assert (decision.pairs, decision.agreement) == (250, 1.0)
    # No disagreement in 250 pairs: 0.05^(1/250) is the lower bound, not 1.
    assert decision.low == pytest.approx(0.05 ** (1 / 250))


def test_agreement_with_the_teacher_does_not_excuse_a_loss_against_gold():
    # The student errs on 8 % of the pairs where the teacher is right.
    teacher = [said(2.0)] * 1000
    student = [said(2.0)] * 920 + [said(-2.0)] * 80
    decision = accept(student, teacher, held_out(1000, target=1.0), AcceptConfig(min_agreement=0.85))
    assert (decision.teacher_gold, decision.student_gold, decision.gold_pairs) == (1.0, 0.92, 1000)
    assert decision.lost_high is not None
    assert 0.08 < decision.lost_high < 0.1
    assert not decision.accepted
    assert "gold" in decision.reason
    without = accept(student, teacher, held_out(1000, target=0.5), AcceptConfig(min_agreement=0.85))
    assert (without.accepted, without.gold_pairs) == (True, 0)


def test_many_pairs_of_few_prompts_give_a_wider_interval():
    teacher = [said(2.0)] * 1000
    student = [said(-2.0) if n % 20 == 0 else said(2.0) for n in range(1000)]  # one prompt of twenty is always wrong
    apart = accept(student, teacher, held_out(1000))
    together = accept(student, teacher, [replace(p, prompt_id=str(n % 20)) for n, p in enumerate(held_out(1000))])
    assert apart.accepted
    assert not together.accepted
    assert together.low < apart.low


@pytest.mark.parametrize("origin", ["other_model", "corpus", "constructed"])
def test_a_student_examined_on_anything_but_the_policys_pairs_is_refused(origin: Any):
    pairs = held_out(300)
    pairs[7] = replace(pairs[7], origin=origin)
    with pytest.raises(InputError, match=f"1 of 300 pairs were not written by the policy \\(1 by {origin}\\)"):
        accept([said(1.0)] * 300, [said(1.0)] * 300, pairs)


def test_pairs_that_were_taught_are_refused():
    student = [said(1.0, digest=f"d{n}") for n in range(300)]
    with pytest.raises(InputError, match="2 of 300 pairs were among the student's training pairs"):
        accept(student, [said(1.0)] * 300, held_out(300), taught=frozenset({"d3", "d9"}))


def test_too_few_pairs_are_refused_as_an_examination():
    with pytest.raises(InputError, match="got 199 pairs that the teacher decides"):
        accept([said(1.0)] * 199, [said(1.0)] * 199, held_out(199))
    with pytest.raises(InputError, match="one each"):
        accept([said(1.0)] * 300, [said(1.0)] * 299, held_out(300))
