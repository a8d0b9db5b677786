"""Direct alignment: losses against their formulas and against TRL, pairs in one forward pass, training that works."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.objective import StepContext
from learners.core.policy import Policy
from learners.direct.config import DirectConfig, RatingConfig
from learners.direct.losses import preference_losses, rating_anchor, rating_losses, smoothed
from learners.direct.pairs import AnswerPair, RatedAnswer, batch_of_pairs
from learners.direct.rows import Answers, answer_logprobs, whole_groups
from learners.objectives.dpo import DPOObjective, with_reference
from learners.objectives.kto import mismatched
from learners.objectives.online_dpo import pairs_of
from learners.offline import train_on_pairs, train_on_ratings
from solon.errors import InputError
from solon.records import Filters
from tests.unit.learner_builders import VOCABULARY, logprobs_of_sequence, make_group, write_llama

PAIRS = [
    AnswerPair(prompt=(5, 6, 7), first=(8, 9, 1), second=(10, 1)),
    AnswerPair(prompt=(5, 9), first=(11, 12, 13, 14, 1), second=(8, 8, 1), p=0.0),
    AnswerPair(prompt=(7, 7, 7, 7), first=(3, 1), second=(4, 5, 6, 1)),
]


def context(step: int = 0) -> StepContext[Any]:
    return StepContext(step=step, seed=0, update=lambda *_: None)


def policy_of(path: str, config: DirectConfig | RatingConfig, *, reference: bool = False) -> Policy:
    return Policy(config, model=path, temperature=1.0, reference=reference)


def loss_and_gradients(path: str, pairs: list[AnswerPair], config: DirectConfig) -> tuple[float, dict[str, Any]]:
    policy = policy_of(path, config)
    objective = DPOObjective(policy, config)
    total = 0.0
    for minibatch in objective.prepare(pairs, context()).minibatches:
        for microbatch in minibatch.microbatches:
            for loss, _ in objective.loss(microbatch, minibatch.denominator):
                loss.backward()
                total += loss.item()
    return total, {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


def test_certain_labels_give_the_published_losses():
    gaps, beta = torch.tensor([0.7, -1.2]), 0.3
    first = preference_losses(gaps, torch.ones(2), beta=beta, kind="sigmoid")
    assert torch.allclose(first, -functional.logsigmoid(beta * gaps))
    second = preference_losses(gaps, torch.zeros(2), beta=beta, kind="sigmoid")
    assert torch.allclose(second, -functional.logsigmoid(-beta * gaps))
    assert torch.allclose(preference_losses(gaps, torch.ones(2), beta=beta, kind="ipo"), (gaps - 1 / (2 * beta)) ** 2)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_a_soft_label_is_the_mixture_of_both_certain_ones(kind: Any, p: float):
    gaps, soft = torch.tensor([0.4, -2.0]), torch.tensor([p, p])
    both = [preference_losses(gaps, torch.full((2,), one), beta=0.2, kind=kind) for one in (1.0, 0.0)]
    found = preference_losses(gaps, soft, beta=0.2, kind=kind)
    assert torch.allclose(found, p * both[0] + (1 - p) * both[1])


def test_the_loss_of_a_soft_label_is_least_where_the_policy_has_its_odds():
    gaps = torch.linspace(-20, 20, 4001)
    losses = preference_losses(gaps, torch.full_like(gaps, 0.8), beta=0.5, kind="sigmoid")
    assert 0.5 * float(gaps[losses.argmin()]) == pytest.approx(math.log(0.8 / 0.2), abs=0.01)


def test_smoothing_moves_labels_towards_a_tie():
    assert smoothed(torch.tensor([1.0, 0.0, 0.5]), 0.1).tolist() == pytest.approx([0.9, 0.1, 0.5])


def test_ratings_follow_the_formula_and_the_anchor_is_never_negative():
    ratio = torch.tensor([0.5, -0.5])
    found = rating_losses(ratio, torch.tensor([1.0, 0.0]), 0.2, beta=0.4, desirable=1.5, undesirable=1.0)
    expected = [1.5 * (1 - 1 / (1 + math.exp(-0.4 * 0.3))), 1 - 1 / (1 + math.exp(-0.4 * 0.7))]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert float(rating_anchor(torch.tensor([-3.0, 1.0]))) == 0
    assert float(rating_anchor(torch.tensor([3.0, 1.0]))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 1.2}, "expected 0 <= p <= 1"),
        ({"p": float("nan")}, "expected 0 <= p <= 1"),
        ({"weight": -1.0}, "weight >= 0"),
        ({"second": ()}, "empty prompt or answer"),
        ({"second": (8, 9, 1)}, "two equal answers with a certain label"),
        ({"reference": (0.0, float("inf"))}, "expected finite numbers"),
    ],
)
def test_a_pair_that_cannot_teach_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(PAIRS[0], **change)


def test_equal_answers_with_an_even_label_are_kept():
    assert replace(PAIRS[0], second=PAIRS[0].first, p=0.5).p == 0.5


@pytest.mark.parametrize("max_tokens", [16, 40, 4096])
@pytest.mark.parametrize("share", [True, False])
def test_log_probs_of_answers_are_those_of_the_sequences_alone(max_tokens: int, share: bool, tmp_path: Path):
    path = write_llama(tmp_path)
    config = DirectConfig(max_tokens_per_microbatch=max_tokens, share_prompts=share)
    policy = policy_of(path, config)
    batch = batch_of_pairs(PAIRS)
    found = answer_logprobs(policy, policy.layout, batch, range(6))
    expected = [
        sum(logprobs_of_sequence(policy.model, (*pair.prompt, *answer))[len(pair.prompt) - 1 :])
        for pair in PAIRS
        for answer in (pair.first, pair.second)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    for microbatch in whole_groups(policy.layout, batch, range(6), policy.device):
        here = Answers.of(batch, microbatch).rollouts.tolist()
        assert all(rollout ^ 1 in here for rollout in here), "both answers of a pair"


def test_the_untrained_policy_has_the_loss_of_a_guess_and_microbatches_add_up(tmp_path: Path):
    path = write_llama(tmp_path)
    losses, gradients = [], []
    for size in (16, 4096):
        config = DirectConfig(max_tokens_per_microbatch=size)
        pairs = with_reference(policy_of(path, config), PAIRS)
        loss, found = loss_and_gradients(path, pairs, config)
        losses.append(loss)
        gradients.append(found)
    assert losses == pytest.approx([math.log(2)] * 2, abs=1e-5)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_pairs_without_reference_log_probs_are_refused(tmp_path: Path):
    config = DirectConfig()
    with pytest.raises(ValueError, match="call with_reference first"):
        DPOObjective(policy_of(write_llama(tmp_path), config), config).prepare(PAIRS, context())


@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid_norm", "ipo"])
def test_training_raises_the_better_answers_over_the_worse_ones(kind: Any, tmp_path: Path):
    path = write_llama(tmp_path / "model") if (tmp_path / "model").mkdir() is None else ""
    config = DirectConfig(learning_rate=3e-3, epochs=12, batch=3, preference_loss=kind)
    trained = train_on_pairs(path, PAIRS, config, save_to=tmp_path / "trained")
    assert trained.report.last_loss < trained.report.first_loss
    assert trained.examples == 3
    before, after = (
        answer_logprobs(one, one.layout, batch_of_pairs(PAIRS), range(6))
        for one in (policy_of(path, config), policy_of(str(tmp_path / "trained"), config))
    )
    change = (after - before)[0::2] - (after - before)[1::2]
    assert (np.sign(change) == [1, -1, 1]).all(), change


def test_ratings_raise_good_answers_and_lower_bad_ones(tmp_path: Path):
    (tmp_path / "model").mkdir()
    path = write_llama(tmp_path / "model")
    answers = [RatedAnswer(prompt=pair.prompt, answer=pair.first, good=float(i != 1)) for i, pair in enumerate(PAIRS)]
    config = RatingConfig(learning_rate=3e-3, epochs=15, batch=3)
    train_on_ratings(path, answers, config, save_to=tmp_path / "trained")
    before, after = (
        answer_logprobs(one, one.layout, batch_of_pairs(PAIRS), range(6))[0::2]
        for one in (policy_of(path, config), policy_of(str(tmp_path / "trained"), config))
    )
    assert (np.sign(after - before) == [1, -1, 1]).all()


def test_a_last_batch_of_one_answer_trains_with_the_least_anchor(tmp_path: Path):
    (tmp_path / "model").mkdir()
    answers = [RatedAnswer(prompt=pair.prompt, answer=pair.first, good=1.0) for pair in PAIRS]
    config = RatingConfig(learning_rate=1e-3, batch=2)
    trained = train_on_ratings(write_llama(tmp_path / "model"), answers, config, save_to=tmp_path / "trained")
    assert trained.report.steps == 2


def test_filters_of_the_sampling_leave_the_first_log_ratios_at_zero(tmp_path: Path):
    (tmp_path / "model").mkdir()
    config = LearnConfig(objective="online_dpo", minibatches=1)
    groups = [make_group(i, (5, 6 + i), [(7, 1), (8, 9, 1)], [1.0, -1.0]) for i in range(3)]
    learner = build_learner(
        config, model=write_llama(tmp_path / "model"), temperature=1.0, filters=Filters(top_k=3), seed=0
    )
    metrics = learner.train(0, groups).metrics
    assert metrics["learn/better_log_ratio/mean"] == pytest.approx(0, abs=1e-5)
    assert metrics["learn/loss/mean"] == pytest.approx(math.log(2), abs=1e-5)


def test_ratings_of_one_prompt_have_no_anchor():
    rows = [RatedAnswer(prompt=(5,), answer=(6, 1), good=1.0), RatedAnswer(prompt=(5,), answer=(7, 1), good=0.0)]
    assert mismatched(rows) == []
    other = RatedAnswer(prompt=(9,), answer=(8, 1), good=1.0)
    assert [one.answer for one in mismatched([*rows, other])] == [(8, 1), (8, 1), (6, 1)]


def test_no_pair_that_counts_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="none with a weight above 0"):
        train_on_pairs("unused", [replace(PAIRS[0], weight=0.0)], DirectConfig(), save_to=tmp_path / "x")


def test_the_pairs_of_a_group_are_its_extremes_or_all_clear_ones(tmp_path: Path):
    (tmp_path / "model").mkdir()
    config = LearnConfig(objective="online_dpo")
    learner = build_learner(config, model=write_llama(tmp_path / "model"), temperature=1.0, seed=0)
    group = make_group(0, (5, 6), [(7, 1), (8, 1), (9, 1), (10, 1)], [0.0, 2.0, None, 0.1])
    batch = learner.objective.batch_of([group])  # type: ignore[attr-defined]
    (best,) = pairs_of(batch, 0, all_of_them=False, tie=0.05)
    assert (best.first, best.second, best.weight) == (1, 0, 1.0)
    assert best.p == pytest.approx(1 / (1 + math.exp(-2)))
    found = pairs_of(batch, 0, all_of_them=True, tie=0.05)
    assert [(one.first, one.second) for one in found] == [(1, 2), (1, 0)]
    assert sum(one.weight for one in found) == pytest.approx(1)
    assert pairs_of(batch, 0, all_of_them=False, tie=0.45) == []


def test_online_pairs_train_resume_exactly_and_skip_a_batch_of_ties(tmp_path: Path):
    (tmp_path / "model").mkdir()
    path = write_llama(tmp_path / "model")
    config = LearnConfig(objective="online_dpo", learning_rate=3e-3, minibatches=1)
    groups = [make_group(i, (5, 6 + i), [(7, 1), (8, 9, 1)], [1.0, -1.0]) for i in range(3)]
    learner = build_learner(config, model=path, temperature=1.0, seed=0)
    losses = [learner.train(step, groups).metrics["learn/loss/mean"] for step in range(4)]
    assert losses[0] == pytest.approx(-(math.log(1 / (1 + math.exp(-0.0)))), abs=1e-4)
    assert losses == sorted(losses, reverse=True)
    learner.save(tmp_path / "saved")
    tied = [make_group(0, (5, 6), [(7, 1), (8, 1)], [1.0, 1.0])]
    assert not learner.train(4, tied).moved
    again = build_learner(config, model=path, temperature=1.0, seed=0)
    again.load(tmp_path / "saved")
    again.train(4, tied)
    one, two = (each.train(5, groups).metrics for each in (learner, again))
    same = {key for key in one if not key.endswith("_s/sum")}
    assert {key: one[key] for key in same} == {key: two[key] for key in same}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "online_dpo", "kl_coefficient": 0.1}, "kl_coefficient = 0.1 has no effect.*set by beta"),
        ({"objective": "ppo", "beta": 0.5}, "beta = 0.5 has no effect.*set by kl_coefficient"),
        ({"objective": "online_dpo", "label_smoothing": 0.5}, "label_smoothing"),
    ],
)
def test_settings_of_another_objective_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        LearnConfig(**given)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "sigmoid_norm"])
def test_losses_and_gradients_equal_those_of_trl(kind: Any, tmp_path: Path):
    trl = pytest.importorskip("trl", reason="TRL is installed for benchmarks only")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "start").mkdir()
    (tmp_path / "model").mkdir()
    start, path = write_llama(tmp_path / "start"), write_llama(tmp_path / "model", seed=1)
    pairs = [replace(PAIRS[1], first=PAIRS[1].second, second=PAIRS[1].first, p=1.0), PAIRS[0], PAIRS[2]]
    config = DirectConfig(preference_loss=kind, beta=0.3)
    known = with_reference(policy_of(start, config), pairs)
    loss, gradients = loss_and_gradients(path, known, config)

    class Trainer(trl.DPOTrainer):  # type: ignore[misc, name-defined]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token_id = 0
    rows = Dataset.from_list(
        [{"prompt_ids": list(p.prompt), "chosen_ids": list(p.first), "rejected_ids": list(p.second)} for p in pairs]
    )
    args = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), loss_type=[kind], beta=0.3, bf16=False, use_cpu=True, report_to=[],
        gradient_checkpointing=False, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(path),
        ref_model=AutoModelForCausalLM.from_pretrained(start),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(list(rows)))
    theirs.backward()
    assert loss == pytest.approx(float(theirs), rel=1e-6)
    for name, p in trainer.model.named_parameters():
        scale = float(p.grad.abs().max())
        assert torch.allclose(gradients[name], p.grad, atol=2e-6 * max(scale, 1e-3), rtol=1e-5), name
    assert VOCABULARY > 14
