"""A reward model: Bradley-Terry on soft pairs, rewards that padding does not move, files that others load."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.core.packing import by_length
from learners.networks.posterior import margins_of_draws
from learners.networks.reward_model import PreferencePair, RewardModel, accuracy, accuracy_of, embed, margins, score
from learners.objectives.reward_model import RewardModelConfig, fit, preference_loss
from solon.errors import InputError, RunFailedError
from tests.unit.learner_builders import VOCABULARY, write_llama

PAD, END, GOOD = 0, 1, 7
FAST = RewardModelConfig(learning_rate=3e-3, head_learning_rate=3e-2, batch=8)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A second thread does nothing for tiny models but wait for its turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def loaded(llama: str) -> RewardModel:
    return RewardModel.load(llama, pad_id=PAD, device="cpu")


@pytest.fixture
def model(loaded: RewardModel) -> RewardModel:
    return copy.deepcopy(loaded)


def pair(first: Sequence[int], second: Sequence[int], p: float = 1.0, weight: float = 1.0) -> PreferencePair:
    return PreferencePair(first=tuple(first), second=tuple(second), p=p, weight=weight)


def good_pairs(number: int, seed: int) -> list[PreferencePair]:
    """An answer is good when GOOD is in it; either side may be the better one."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(number):
        bad, good = (rng.choice([3, 4, 5, 6, 8, 9], rng.integers(3, 8)).tolist() for _ in range(2))
        good[rng.integers(len(good))] = GOOD
        sides = [[2, *good, END], [2, *bad, END]]
        found.append(pair(*sides) if index % 2 else pair(*sides[::-1], p=0.0))
    return found


def parameters(model: RewardModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=atol, msg=name)


# -- loss ------------------------------------------------------------------------------------------------------


def test_the_loss_matches_values_by_hand():
    found = preference_loss(
        torch.tensor([0.0, math.log(3), math.log(3)]), torch.tensor([1.0, 1.0, 0.25]), torch.tensor([1.0, 2.0, 0.5])
    )
    by_hand = math.log(2) + 2 * -math.log(0.75) + 0.5 * -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    assert found.item() == pytest.approx(by_hand, rel=1e-6)


def test_its_gradient_is_the_weighted_error_of_the_probability():
    margins_N = torch.tensor([0.0, math.log(3), math.log(3)], requires_grad=True)
    preference_loss(margins_N, torch.tensor([1.0, 0.75, 0.25]), torch.tensor([1.0, 9.0, 2.0])).backward()
    assert margins_N.grad is not None
    assert margins_N.grad.tolist() == pytest.approx([-0.5, 0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("wrong", [{"p": 1.1}, {"p": math.nan}, {"weight": -1.0}, {"weight": math.inf}])
def test_a_pair_has_a_probability_and_a_weight(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="expected 0 <= p <= 1"):
        PreferencePair(**({"first": (1,), "second": (2,), "p": 0.5} | wrong))  # type: ignore[arg-type]


# -- rewards ---------------------------------------------------------------------------------------------------


def test_neither_padding_nor_batching_changes_a_reward(model: RewardModel):
    sequences = [(2, 5, END), (2, 7, 7, 9, 4, 3, END), (2, 4, 6, 6, END), (END,)]
    alone = [score(model, [ids])[0] for ids in sequences]
    assert score(model, sequences) == pytest.approx(alone, abs=1e-5)
    assert score(model, sequences, max_tokens=8) == pytest.approx(alone, abs=1e-5)
    assert len({round(reward, 4) for reward in alone}) == 4


def test_the_padding_token_may_stand_inside(model: RewardModel):
    short, long = (2, PAD, 5, END), (2, 5, 5, 5, 5, 5, 5, END)
    assert score(model, [short, long])[0] == pytest.approx(score(model, [short])[0], abs=1e-5)


def test_a_reward_is_the_head_on_the_features(model: RewardModel):
    sequences = [(2, 5, END), (2, 7, 9, END)]
    features_SH = embed(model, sequences)
    head_H = model.network.score.weight.detach().numpy()[0]
    assert features_SH.shape == (2, 32)
    assert features_SH @ head_H == pytest.approx(score(model, sequences), abs=1e-5)


def test_no_sequences_are_no_rewards(model: RewardModel):
    assert len(score(model, [])) == 0


@pytest.mark.parametrize("bad", [(), (2, 5, PAD)])
def test_a_sequence_without_a_last_token_is_refused(model: RewardModel, bad: tuple[int, ...]):
    with pytest.raises(InputError, match="empty or ends in the padding token 0"):
        score(model, [(2, END), bad])


def test_microbatches_hold_each_row_once_and_are_not_too_large():
    sizes = [5, 30, 2, 9, 9, 1, 30]
    found = list(by_length(sizes, 20))
    assert sorted(i for rows in found for i in rows) == list(range(7))
    assert all(len(rows) == 1 or len(rows) * max(sizes[i] for i in rows) <= 20 for rows in found)
    assert found == [[5, 2, 0], [3, 4], [1], [6]]


# -- learning --------------------------------------------------------------------------------------------------


def test_it_learns_what_makes_an_answer_better(model: RewardModel):
    held_out = good_pairs(80, seed=1)
    before = accuracy(model, held_out)
    report = fit(model, good_pairs(96, seed=0), FAST.model_copy(update={"epochs": 3}))
    after = accuracy(model, held_out)
    assert report.steps == 36
    assert report.pairs == 96
    assert report.last_loss < 0.2 < report.first_loss
    assert before.value < 0.75
    assert after.value > 0.9
    assert not model.training


def test_margins_of_exchanged_answers_are_opposite(model: RewardModel):
    one = good_pairs(5, seed=0)
    exchanged = [pair(p.second, p.first, 1 - p.p) for p in one]
    assert margins(model, exchanged) == pytest.approx(-margins(model, one), abs=1e-5)


def test_a_soft_label_is_learned_as_a_probability(model: RewardModel):
    same = pair((2, 5, 5, END), (2, 9, 4, END), p=0.75)
    fit(model, [same] * 8, FAST.model_copy(update={"epochs": 80}))
    assert margins(model, [same])[0] == pytest.approx(math.log(3), abs=0.1)


def test_the_same_seed_gives_the_same_model_and_another_order_another(loaded: RewardModel):
    found = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(loaded)
        fit(model, good_pairs(24, seed=0), FAST.model_copy(update={"seed": seed}))
        found.append(parameters(model))
    assert_same(found[0], found[1])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_small_microbatches_only_save_memory(loaded: RewardModel):
    found = []
    for most in (16384, 24):
        model = copy.deepcopy(loaded)
        fit(model, good_pairs(16, seed=0), FAST.model_copy(update={"max_tokens_per_microbatch": most}))
        found.append(parameters(model))
    assert_same(*found, atol=2e-4)


def test_a_weight_of_two_is_the_pair_twice_and_a_weight_of_zero_is_no_pair(loaded: RewardModel):
    one, other, third = good_pairs(3, seed=0)
    twice = [one, one, other]
    weighted = [pair(one.first, one.second, one.p, weight=2.0), other, pair(third.first, third.second, 0.0, weight=0.0)]
    found = []
    for pairs in (twice, weighted):
        model = copy.deepcopy(loaded)
        fit(model, pairs, FAST)
        found.append(parameters(model))
    assert_same(*found, atol=2e-4)


def test_without_a_pair_that_counts_there_is_nothing_to_learn(model: RewardModel):
    with pytest.raises(InputError, match="label more pairs"):
        fit(model, [pair((2, END), (3, END), weight=0.0)], FAST)


def test_a_loss_that_is_not_finite_stops_the_fit(model: RewardModel):
    model.network.score.weight.data.fill_(math.nan)
    with pytest.raises(RunFailedError, match="lower learning_rate"):
        fit(model, good_pairs(2, seed=0), FAST)


def test_the_rates_rise_and_fall():
    rates = RewardModelConfig(warmup_share=0.1).rates(100)
    assert rates(0) == pytest.approx(0.1)
    assert rates(10) == pytest.approx(1.0)
    assert rates(100) == pytest.approx(0.1)
    assert RewardModelConfig().rates(1)(0) == 1.0


# -- accuracy --------------------------------------------------------------------------------------------------


def test_accuracy_leaves_out_ties_and_weighs():
    decided = [pair((2,), (3,), 0.9), pair((2,), (3,), 0.0, weight=3.0), pair((2,), (3,), 1.0), pair((2,), (3,), 1.0)]
    # Right, right (three times), wrong, and a margin of 0 that counts half.
    assert accuracy_of([1.0, -2.0, -1.0, 0.0], decided).value == pytest.approx(4.5 / 6)


def test_accuracy_of_ties_alone_is_refused(model: RewardModel):
    with pytest.raises(InputError, match="without a decided one"):
        accuracy(model, [pair((2, END), (3, END), 0.5)])


# -- doubt -----------------------------------------------------------------------------------------------------


def test_possible_heads_scatter_as_the_inverse_of_what_the_labels_fix(model: RewardModel):
    labelled, new = good_pairs(6, seed=0), good_pairs(2, seed=1)
    found = margins_of_draws(model, labelled, new, draws=20_000, prior_precision=2.0, seed=3)
    x_MH, x_NH = (
        embed(model, [p.first for p in pairs]) - embed(model, [p.second for p in pairs]) for pairs in (labelled, new)
    )
    p_M = 1 / (1 + np.exp(-margins(model, labelled)))
    covariance = np.linalg.inv(
        2.0 * np.eye(32) + sum(p * (1 - p) * np.outer(x, x) for p, x in zip(p_M, x_MH, strict=True))
    )
    assert found.shape == (20_001, 2)
    assert found[0] == pytest.approx(margins(model, new), abs=1e-4)
    assert found[1:].mean(0) == pytest.approx(found[0], abs=0.05)
    assert np.cov(found[1:].T) == pytest.approx(x_NH @ covariance @ x_NH.T, rel=0.05, abs=0.05)


def test_labelled_pairs_are_less_uncertain(model: RewardModel):
    here, elsewhere = pair((2, 5, END), (2, 9, END)), pair((2, 3, 3, END), (2, 7, 4, END))
    before = margins_of_draws(model, [elsewhere], [here], draws=500).std(0)[0]
    after = margins_of_draws(model, [here] * 50 + [elsewhere], [here], draws=500).std(0)[0]
    assert after < 0.5 * before


# -- files -----------------------------------------------------------------------------------------------------


def test_transformers_loads_what_is_saved_and_gives_the_same_rewards(model: RewardModel, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification

    fit(model, good_pairs(8, seed=0), FAST)
    model.save(tmp_path)
    sequences = [(2, 5, END), (2, 7, 7, 9, END)]
    again = RewardModel.load(tmp_path, pad_id=PAD, device="cpu", seed=5)
    assert score(again, sequences) == pytest.approx(score(model, sequences), abs=1e-6)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids_BT, mask_BT = torch.tensor([[2, 5, END, PAD, PAD], [2, 7, 7, 9, END]]), torch.ones(2, 5, dtype=torch.long)
    mask_BT[0, 3:] = 0
    with torch.no_grad():
        rewards = theirs(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0]
    assert rewards.tolist() == pytest.approx(score(model, sequences), abs=1e-5)


def test_new_heads_differ_by_seed_on_one_backbone(llama: str):
    one, same, other = (parameters(RewardModel.load(llama, pad_id=PAD, device="cpu", seed=s)) for s in (0, 0, 1))
    assert_same(one, same)
    assert [name for name in one if not torch.equal(one[name], other[name])] == ["network.score.weight"]
    assert one["network.score.weight"].std().item() == pytest.approx(33**-0.5, rel=0.4)


def test_loading_prints_nothing_about_the_new_head(llama: str, capfd: pytest.CaptureFixture[str]):
    RewardModel.load(llama, pad_id=PAD, device="cpu")
    assert capfd.readouterr().err == ""


def test_a_directory_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="give a Hugging Face directory"):
        RewardModel.load(tmp_path, pad_id=PAD, device="cpu")


def test_a_model_that_lacks_weights_is_refused(llama: str, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = load_file(Path(llama) / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((Path(llama) / "config.json").read_text())
    with pytest.raises(InputError, match=r"lacks .*layers\.1\.mlp"):
        RewardModel.load(tmp_path, pad_id=PAD, device="cpu")


def test_a_classifier_is_no_reward_model(llama: str):
    from transformers import AutoModelForSequenceClassification

    classifier = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=3)
    with pytest.raises(InputError, match="3 labels, expected one"):
        RewardModel(classifier, pad_id=PAD)


def test_the_tiny_vocabulary_holds_the_tokens_used_here():
    assert max(GOOD, 9) < VOCABULARY
