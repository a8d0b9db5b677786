"""The learner as a whole, on a random Llama of 0.02 M parameters."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learners.build import build_learner
from learners.config import LearnConfig, LoraConfig
from learners.core.batch import Batch
from learners.policy_gradient.targets import group_advantages
from solon.engines.digest_tree import root_of, verify
from solon.errors import InputError, RunFailedError
from solon.feedback.selection.estimators import doubly_robust
from solon.telemetry.movement import Movement
from tests.unit.learner_builders import (
    logprobs_of_sequence,
    make_group,
    model_from,
    put,
    random_groups,
    sampled_groups,
    tensors_in,
    write_llama,
)

WANTED = 7


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("untied"), tied=False)


def make_learner(model, *, seed=0, temperature=1.0, **changes):
    options = {"learning_rate": 1e-3, "critic_learning_rate": 1e-3} | changes
    return build_learner(LearnConfig(**options), model=model, temperature=temperature, seed=seed)


def share_of_wanted(answer):
    return answer.count(WANTED) / len(answer)


@pytest.mark.parametrize("advantages", ["gae", "group"])
def test_a_rewarded_token_becomes_common_within_a_few_steps(llama, advantages):
    learner = make_learner(llama, advantages=advantages, learning_rate=8e-3, critic_learning_rate=5e-3, temperature=0.9)
    weights, rewards = learner.initial_weights(), []
    engine = model_from(weights, llama)
    for step in range(8):
        groups = sampled_groups(
            put(weights, engine), share_of_wanted,
            num_groups=8, size=8, length=6, version=step, temperature=0.9,
        )  # fmt: skip
        report, weights = learner.step(step, groups)
        rewards.append(report.metrics["learn/reward/mean"])
        # The sampler held exactly these weights, so mu and pi_prox are one policy.
        assert report.metrics["learn/mismatch_gap/max"] < 1e-4
        assert report.metrics["learn/ess/mean"] == pytest.approx(1.0, abs=1e-4)
    assert rewards[0] < 0.15
    assert rewards[-1] > 0.6
    assert weights.version == learner.version == 8


@pytest.mark.parametrize("advantages", ["gae", "group"])
def test_the_order_of_groups_changes_nothing(llama, advantages):
    groups = random_groups(6, 3)
    fingerprints = set()
    for order in (groups, groups[::-1]):
        _, weights = make_learner(llama, advantages=advantages).step(0, order)
        fingerprints.add(weights.fingerprint)
    assert len(fingerprints) == 1


def test_the_seed_decides_the_minibatches(llama):
    first, again, other = (
        make_learner(llama, seed=seed, minibatches=3).step(0, random_groups(6, 3))[1].fingerprint for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("advantages", ["gae", "group"])
def test_microbatches_and_shared_prompts_do_not_change_the_update(llama, advantages):
    groups = random_groups(5, 4, invalid=True)
    found = []
    for budget, share in ((4096, False), (32, False), (64, True)):
        learner = make_learner(
            llama, advantages=advantages, max_tokens_per_microbatch=budget, share_prompts=share,
            kl_coefficient=0.5, entropy_bonus=0.01, learning_rate=1e-4,
        )  # fmt: skip
        report, weights = learner.step(0, groups)
        found.append((report.metrics, tensors_in(weights)))
    for metrics, tensors in found[1:]:
        for key in ("learn/policy_loss/mean", "learn/grad_norm/max", "learn/kl_reference/mean", "learn/ess/mean"):
            assert metrics[key] == pytest.approx(found[0][0][key], rel=2e-3, abs=1e-5)
        for name, tensor in tensors.items():
            # Adam divides by the gradient's size, so where that is rounding noise a step may differ in sign.
            torch.testing.assert_close(tensor, found[0][1][name], atol=2e-5, rtol=1e-3)


def test_a_rollout_without_reward_trains_nothing_at_all(llama):
    first = make_group(0, [3, 4], [[5, 6], [7, 8], [9, 9]], [1.0, -1.0, None])
    changed = make_group(0, [3, 4], [[5, 6], [7, 8], [20, 21, 22]], [1.0, -1.0, None])
    absent = make_group(0, [3, 4], [[5, 6], [7, 8]], [1.0, -1.0])
    for advantages in ("gae", "group"):
        fingerprints = {
            make_learner(llama, advantages=advantages).step(0, [group])[1].fingerprint
            for group in (first, changed, absent)
        }
        assert len(fingerprints) == 1


def test_a_batch_without_any_reward_ends_the_run_and_moves_nothing(llama):
    learner = make_learner(llama)
    before = learner.initial_weights().fingerprint
    with pytest.raises(RunFailedError, match="has a reward"):
        learner.step(0, [make_group(0, [3], [[5], [6]], [None, None])])
    assert learner.initial_weights().fingerprint == before
    assert learner.version == 0


def test_a_gradient_that_is_not_finite_ends_the_run_before_a_weight_moves(llama):
    learner = make_learner(llama, max_bad_steps=0)
    learner.step(0, random_groups())
    before = learner.initial_weights().fingerprint
    with torch.no_grad():
        learner.objective.critic.head.weight.fill_(float("inf"))
    with pytest.raises(RunFailedError, match=r"step 1 before its optimiser moved.*critic"):
        learner.step(1, random_groups(version=1))
    assert learner.initial_weights().fingerprint == before


def test_save_and_load_resume_equal_to_the_bit(llama, tmp_path):
    learner = make_learner(llama, critic_warmup_steps=2)
    for step in range(2):
        learner.step(step, random_groups(seed=step, version=step))
    learner.save(tmp_path / "saved")
    expected = [learner.step(step, random_groups(seed=step, version=step)) for step in (2, 3)]

    resumed = make_learner(llama, critic_warmup_steps=2)
    resumed.load(tmp_path / "saved")
    assert resumed.version == 2
    assert resumed.initial_weights().version == 2
    for step, (report, weights) in zip((2, 3), expected, strict=True):
        again_report, again = resumed.step(step, random_groups(seed=step, version=step))
        assert again.fingerprint == weights.fingerprint
        timeless = {k: v for k, v in report.metrics.items() if "_s/" not in k}
        assert timeless == {k: v for k, v in again_report.metrics.items() if "_s/" not in k}


def test_a_checkpoint_of_another_learner_is_refused(llama, tmp_path):
    make_learner(llama, advantages="group").save(tmp_path)
    with pytest.raises(InputError, match="does not fit this run"):
        make_learner(llama).load(tmp_path)
    with pytest.raises(InputError, match="does not fit this run"):
        make_learner(llama).load(tmp_path / "nowhere")


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, alpha=8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_saved_policy_is_a_hugging_face_directory_that_equals_the_payload(llama, tmp_path, lora, dtype):
    learner = make_learner(llama, lora=lora, serving_dtype=dtype)
    _, weights = learner.step(0, random_groups())
    learner.save(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype="auto")
    assert saved.dtype == getattr(torch, dtype)
    for name, tensor in tensors_in(weights).items():
        assert torch.equal(saved.state_dict()[name], tensor)
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").chat_template
    assert json.loads((tmp_path / "learner.json").read_text())["version"] == 1


def test_a_raised_kl_coefficient_outlives_a_checkpoint_unless_the_configuration_is_another(llama, tmp_path):
    learner = make_learner(llama, advantages="group", kl_coefficient=0.1)
    learner.raise_kl(3.0)
    learner.save(tmp_path)
    for configured, expected in ((0.1, 0.3), (0.2, 0.2)):
        resumed = make_learner(llama, advantages="group", kl_coefficient=configured)
        resumed.load(tmp_path)
        assert resumed.objective.config.kl_coefficient == pytest.approx(expected)
    # A checkpoint of a version that did not write the configured value.
    counters = json.loads((tmp_path / "learner.json").read_text())
    del counters["kl_configured"]
    (tmp_path / "learner.json").write_text(json.dumps(counters))
    resumed = make_learner(llama, advantages="group", kl_coefficient=0.2)
    resumed.load(tmp_path)
    assert resumed.objective.config.kl_coefficient == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["tied", "untied", "bfloat16"])
def test_a_payload_loads_into_a_fresh_model_with_the_canaries_it_promises(llama, untied, kind):
    path = untied if kind == "untied" else llama
    learner = make_learner(path, serving_dtype="bfloat16" if kind == "bfloat16" else "float32")
    _, weights = learner.step(0, random_groups())
    tensors = tensors_in(weights)
    assert ("lm_head.weight" in tensors) == (kind == "untied")
    assert weights.version == 1
    assert weights.fingerprint == root_of(weights.leaves)
    verify(weights, "rollout-0")
    assert weights.fingerprint != make_learner(path).initial_weights().fingerprint
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    assert all(tensor.dtype == dtype for tensor in tensors.values())
    model = model_from(weights, path, dtype).float()  # canaries are of these bytes, computed in float32
    assert 1e-5 < weights.canary_noise < 0.1
    assert len(weights.canary_token_ids) >= 2
    for ids, promised in zip(weights.canary_token_ids, weights.canary_logprobs, strict=True):
        assert len(promised) == len(ids) - 1
        assert logprobs_of_sequence(model, ids) == pytest.approx(promised, abs=1e-5)


def test_canaries_may_be_given(llama):
    learner = build_learner(LearnConfig(), model=llama, temperature=1.0, seed=0, canaries=[[3, 4, 5]])
    weights = learner.initial_weights()
    assert weights.canary_token_ids == ((3, 4, 5),)
    assert logprobs_of_sequence(model_from(weights, llama), [3, 4, 5]) == pytest.approx(
        weights.canary_logprobs[0], abs=1e-5
    )


def test_lora_trains_only_adapters_and_publishes_the_merged_model(untied):
    learner = make_learner(untied, lora=LoraConfig(r=4, alpha=8), learning_rate=5e-3)
    start = {name: p.detach().clone() for name, p in learner.objective.policy.model.named_parameters()}
    fingerprints = [learner.initial_weights().fingerprint]
    for step in range(3):
        report, weights = learner.step(step, random_groups(seed=step, version=step))
        fingerprints.append(weights.fingerprint)
    assert len(set(fingerprints)) == 4
    moved = {n for n, p in learner.objective.policy.model.named_parameters() if not torch.equal(p, start[n])}
    assert moved
    assert all(".lora_" in name for name in moved)
    ids = weights.canary_token_ids[0]
    peft_logprobs = logprobs_of_sequence(learner.objective.policy.model, ids)
    assert logprobs_of_sequence(model_from(weights, untied), ids) == pytest.approx(peft_logprobs, abs=1e-5)
    assert weights.canary_logprobs[0] == pytest.approx(peft_logprobs, abs=1e-5)
    # The reference is the model with its adapters off: after some steps they differ.
    assert report.metrics["learn/kl_reference/mean"] > 0


def test_a_lora_learner_resumes_equal_to_the_bit(llama, tmp_path):
    learner = make_learner(llama, lora=LoraConfig(r=2))
    learner.step(0, random_groups())
    learner.save(tmp_path)
    _, weights = learner.step(1, random_groups(version=1))
    resumed = make_learner(llama, lora=LoraConfig(r=2))
    resumed.load(tmp_path)
    assert resumed.step(1, random_groups(version=1))[1].fingerprint == weights.fingerprint


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_an_adapter_on_a_tied_head_is_refused(llama):
    with pytest.raises(InputError, match="tied"):
        make_learner(llama, lora=LoraConfig(target_modules=("lm_head",)))
    with pytest.raises(InputError, match="does not fit the model"):
        make_learner(llama, lora=LoraConfig(target_modules=("no_such_layer",)))


@pytest.mark.parametrize(
    "changes",
    [
        {"importance": "icepop"},
        {"importance": "sequence", "geometric_mask": 0.5},
        {"importance": "none", "bypass": True, "epochs": 1, "minibatches": 1},
        {"kl_coefficient": 0.0, "entropy_bonus": 0.01},
        {"value_clip": 0.2, "critic_warmup_steps": 2, "lam": 0.9, "gamma": 0.99},
        {"gradient_checkpointing": True, "lora": LoraConfig(r=2, target_modules=("q_proj", "down_proj"))},
        {"dtype": "bfloat16"},
        {"truncated": "penalise", "advantages": "group", "kl_estimator": "k2"},
        {"schedule": "cosine", "schedule_steps": 10, "warmup_steps": 2, "weight_decay": 0.1},
        {"normalize_advantages": False, "dual_clip": None, "reward_clip": None},
    ],
)
def test_every_variant_trains_and_reports_finite_numbers(llama, changes):
    learner = make_learner(llama, **changes)
    before = learner.initial_weights().fingerprint
    report, weights = learner.step(0, random_groups(invalid=True))
    assert weights.fingerprint != before
    assert all(np.isfinite(value) for value in report.metrics.values())
    assert all(key.startswith("learn/") and key.count("/") == 2 for key in report.metrics)


def test_recomputed_activations_give_the_same_update(llama):
    payloads = [
        tensors_in(make_learner(llama, gradient_checkpointing=on).step(0, random_groups())[1]) for on in (False, True)
    ]
    for name, tensor in payloads[0].items():
        torch.testing.assert_close(payloads[1][name], tensor, atol=1e-5, rtol=1e-3)


def test_tokens_that_are_too_old_train_nothing(llama):
    learner = make_learner(llama, advantages="group", max_token_staleness=0, kl_coefficient=0.0)
    learner.version = 3
    before = tensors_in(learner.initial_weights())
    report, weights = learner.step(3, random_groups(version=2))
    assert report.metrics["learn/too_old/share"] == 1.0
    assert report.metrics["learn/staleness/max"] == 1.0
    for name, tensor in tensors_in(weights).items():
        assert torch.equal(tensor, before[name])


def test_the_critic_learns_to_predict_the_return(llama):
    groups = [make_group(i, [3 + i % 8, 4], [[5, 6], [7, 8]], [float(i % 8), float(i % 8)]) for i in range(16)]
    learner = make_learner(llama, critic_warmup_steps=30, kl_coefficient=0.0, critic_learning_rate=5e-3)
    report, _ = learner.step(0, groups)
    assert report.metrics["learn/explained_variance/mean"] > 0.8
    plain = make_learner(llama, kl_coefficient=0.0)
    report, _ = plain.step(0, groups)
    assert report.metrics["learn/value/mean"] == pytest.approx(3.5, abs=1e-4)


@pytest.mark.parametrize("estimator", ["weighted", "k2", "k3"])
def test_the_kl_penalty_alone_pulls_the_policy_back_to_its_reference(llama, estimator):
    learner = make_learner(
        llama, advantages="group", kl_coefficient=1.0, kl_estimator=estimator, learning_rate=3e-3, minibatches=1
    )
    with torch.no_grad():
        learner.objective.policy.model.model.norm.weight.mul_(3.0)
    weights, distances = learner.initial_weights(), []
    engine = model_from(weights, llama)
    for step in range(4):
        # No answer is better than another, only the penalty is left.
        groups = sampled_groups(put(weights, engine), lambda _: 0.0, num_groups=32, size=4, length=6, version=step)
        report, weights = learner.step(step, groups)
        distances.append(report.metrics["learn/kl_reference/mean"])
    # Other tokens are drawn in each step, so the estimates are noisy.
    assert max(distances[1:]) < 0.9 * distances[0]
    assert distances[-1] < 0.7 * distances[0]


def adam_moments(learner, part="policy"):
    return {k: v.clone() for k, v in learner.optimizers[part].tensors().items() if k.startswith("exp_avg")}


@pytest.mark.parametrize("advantages", ["gae", "group"])
def test_an_uninformative_batch_moves_nothing_and_is_reported(llama, advantages):
    """Every token is too old: Adam's momentum of the step before must not move policy or critic."""
    learner = make_learner(llama, advantages=advantages, max_token_staleness=1)
    learner.step(0, random_groups())
    learner.version = 3
    before = learner.initial_weights().fingerprint
    states = {part: adam_moments(learner, part) for part in learner.optimizers}
    parameters = {k: v.clone() for o in learner.optimizers.values() for k, v in o.tensors().items()}
    report, weights = learner.step(3, random_groups(seed=1, version=0))
    assert weights.fingerprint == before
    assert not report.moved
    assert report.metrics["learn/skipped/share"] == 1.0
    assert report.metrics["learn/masked/share"] == 1.0
    assert report.metrics["learn/importance/mean"] == 0.0
    assert all(np.isfinite(value) for value in report.metrics.values())
    if advantages == "gae":
        assert report.metrics["learn/critic_skipped/share"] == 1.0
    for part, state in states.items():
        assert all(torch.equal(value, state[key]) for key, value in adam_moments(learner, part).items())
    after = {k: v for o in learner.optimizers.values() for k, v in o.tensors().items()}
    assert all(torch.equal(value, after[key]) for key, value in parameters.items())


def test_equally_good_answers_move_nothing(llama):
    learner = make_learner(llama, advantages="group", kl_coefficient=0.0, minibatches=1)
    learner.step(0, random_groups())
    before = learner.initial_weights().fingerprint
    # 0.1 has no exact mean of three: its rounding is no reason for a step.
    report, weights = learner.step(1, [make_group(0, [3, 4], [[5, 6], [7], [8, 9]], [0.1, 0.1, 0.1], version=1)])
    assert weights.fingerprint == before
    assert not report.moved
    assert report.metrics["learn/skipped/share"] == 1.0
    assert learner.version == 2


def test_an_uninformative_minibatch_leaves_the_other_its_step(llama):
    groups = [
        make_group(0, [3, 4], [[5, 6], [7, 8]], [1.0, -1.0]),
        make_group(1, [3, 4], [[5, 6], [7, 8]], [2.0, 2.0]),
    ]
    learner = make_learner(llama, advantages="group", kl_coefficient=0.0, minibatches=2)
    report, _ = learner.step(0, groups)
    assert report.metrics["learn/skipped/share"] == 0.5
    assert report.moved


@pytest.mark.parametrize("advantages", ["gae", "group"])
def test_masked_tokens_change_no_gradient_of_policy_critic_or_kl(llama, advantages):
    """The content of a masked rollout, and its likelihood, do not affect the step."""
    weights = set()
    for cut, reward in (([20, 21], 1.0), ([9, 30], -50.0)):
        groups = [make_group(0, [3, 4], [[5, 6], [7, 8], cut], [1.0, -1.0, reward], finish=["stop", "stop", "length"])]
        learner = make_learner(
            llama, advantages=advantages, truncated="mask", kl_coefficient=0.5, entropy_bonus=0.01, minibatches=1
        )
        with torch.no_grad():
            learner.objective.policy.model.model.norm.weight.mul_(1.5)
        report, updated = learner.step(0, groups)
        assert report.metrics["learn/truncated/share"] == pytest.approx(1 / 3)
        assert report.metrics["learn/masked/share"] == pytest.approx(1 / 3)
        head = () if advantages == "group" else tuple(learner.objective.critic.head.weight.flatten().tolist())
        weights.add((updated.fingerprint, head))
    assert len(weights) == 1


def test_a_truncated_answer_may_end_in_what_the_critic_expected_of_it(llama):
    """The verdict on a text that was cut is not heard then, that on a finished one is."""

    def returns(mode, cut_reward):
        learner = make_learner(llama, truncated=mode, kl_coefficient=0.0, normalize_advantages=False)
        learner.objective.critic.start_at(0.5)
        learner.version = 1
        group = make_group(0, [3, 4], [[5, 6], [7, 8]], [1.0, cut_reward], finish=["stop", "length"], version=1)
        batch = Batch.of([group], truncated=mode, truncated_penalty=2.0)
        microbatches = learner.objective.microbatches(batch, [0])
        targets, _ = learner.objective.targets(batch, microbatches, learner.context(1))
        return targets.advantages_N.tolist(), targets.returns_N.tolist()

    assert returns("keep", -3.0) == ([0.5, 0.5, -3.5, -3.5], [1.0, 1.0, -3.0, -3.0])
    assert returns("bootstrap", -3.0) == ([0.5, 0.5, 0.0, 0.0], [1.0, 1.0, 0.5, 0.5])
    assert returns("bootstrap", 9.0) == returns("bootstrap", -3.0)
    assert returns("penalise", -3.0) == ([0.5, 0.5, -5.5, -5.5], [1.0, 1.0, -5.0, -5.0])


def test_a_new_critic_starts_at_the_mean_of_the_unmasked_returns(llama):
    for mode, mean in (("keep", 2.0), ("mask", 3.0), ("bootstrap", 3.0), ("penalise", 1.5)):
        learner = make_learner(llama, truncated=mode, kl_coefficient=0.0)
        learner.step(0, [make_group(0, [3], [[5, 6], [7, 8]], [3.0, 1.0], finish=["stop", "length"])])
        # One step of Adam moves the bias by a learning rate at most, in each of the minibatches.
        assert learner.objective.critic.head.bias.item() == pytest.approx(mean, abs=3e-3)


def test_a_penalty_for_truncation_is_in_the_baseline_and_a_masked_answer_is_not():
    group = make_group(0, [3], [[5], [6], [7], [8]], [1.0, 2.0, 2.0, None], finish=["stop", "stop", "length", "length"])
    for mode, baseline, learnt in (
        ("keep", (1.0, 2.0, 2.0, None), [1.0, 2.0, 2.0]),
        ("penalise", (1.0, 2.0, 0.5, None), [1.0, 2.0, 0.5]),
        ("mask", (1.0, 2.0, None, None), [1.0, 2.0, 2.0]),
    ):
        batch = Batch.of([group], truncated=mode, truncated_penalty=1.5)
        assert batch.baseline_rewards == (baseline,)
        assert batch.reward_R.tolist() == learnt
        assert batch.group_rewards == ((1.0, 2.0, 2.0, None),)
    advantages = group_advantages(LearnConfig(normalize_advantages=False), batch, torch.ones(3, dtype=torch.bool))
    assert advantages.tolist() == [-0.5, 0.5, 0.0]


@pytest.mark.parametrize("masked_by", ["staleness", "geometric mask", "outlier"])
def test_the_reward_of_a_rollout_that_a_mask_leaves_out_moves_nothing(llama, masked_by):
    changes = {"staleness": {"max_token_staleness": 0}, "geometric mask": {"geometric_mask": 2.0}, "outlier": {}}
    told, weights = set(), set()
    for reward in (0.5, 40.0):
        group = make_group(0, [3, 4], [[5, 6], [7, 8], [9, 10], [11, 12]], [1.0, -1.0, reward, 3.0], version=0)
        rollouts = list(group.group.rollouts)
        odd = rollouts[2]
        rollouts[2] = (
            dataclasses.replace(odd, segments=((-1, 2),))
            if masked_by == "staleness"
            else dataclasses.replace(odd, logprobs=odd.logprobs - np.float32(30.0))
        )
        group = dataclasses.replace(group, group=dataclasses.replace(group.group, rollouts=tuple(rollouts)))
        learner = make_learner(
            llama, advantages="group", importance="sequence", minibatches=1, kl_coefficient=0.0, **changes[masked_by]
        )
        report, updated = learner.step(0, [group])
        assert report.metrics["learn/masked/share"] == pytest.approx(1 / 4)
        assert report.groups[0].advantages_G[2] is None
        told.add(report.groups[0].advantages_G)
        weights.add(updated.fingerprint)
    assert len(told) == len(weights) == 1


def test_rewards_that_are_right_only_on_average_are_not_clipped():
    """A doubly robust reward by exact enumeration: drawn with 0.3 and corrected, or the proxy's value."""
    proxy, label, propensity = -3.0, 3.0, 0.3
    rewards = [float(doubly_robust([proxy], [seen], [propensity]).rewards_N[0]) for seen in (label, math.nan)]
    assert rewards[0] == pytest.approx(17.0)
    for clip, mean in ((LearnConfig().reward_clip, label), (10.0, 0.9)):
        batch = Batch.of([make_group(0, [3], [[5], [6]], rewards)], reward_clip=clip)
        assert propensity * batch.reward_R[0] + (1 - propensity) * batch.reward_R[1] == pytest.approx(mean, abs=1e-6)


def test_a_batch_of_nothing_but_masked_answers_is_no_failure(llama):
    learner = make_learner(llama, truncated="mask")
    report, _ = learner.step(0, [make_group(0, [3], [[5, 6], [7]], [1.0, -1.0])])
    assert report.metrics["learn/truncated/share"] == report.metrics["learn/skipped/share"] == 1.0
    assert not report.moved
    movement = Movement(max_tokens=2, truncated="mask")
    movement.add(report)
    assert movement.cause.startswith("all 2 answers were cut at rollout.max_tokens = 2 and learn.truncated = 'mask'")
    assert report.groups[0].advantages_G == (None, None)


def test_a_step_reports_its_span_on_the_learn_lane(llama):
    started = time.time()
    report, _ = make_learner(llama).step(0, random_groups())
    (span,) = report.spans
    assert (span.lane, span.worker, span.name) == ("learn", "learner-0", "step 0")
    assert started <= span.start_s < span.end_s <= time.time()


def test_a_step_out_of_turn_is_a_bug(llama):
    with pytest.raises(ValueError, match="step 3 was given to a learner at version 0"):
        make_learner(llama).step(3, random_groups())


def test_a_missing_model_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        make_learner(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="sees no GPU") if not torch.cuda.is_available() else pytest.warns():
        make_learner(str(tmp_path), device="cuda")


def test_the_callers_random_state_is_unchanged(llama):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    make_learner(llama, lora=LoraConfig(r=2)).step(0, random_groups())
    assert torch.equal(torch.rand(1), expected)


def test_a_step_reports_reward_and_advantage_of_every_rollout(llama):
    rewards = (1.0, None, 3.0, 20.0)
    groups = [make_group(ordinal, [3, 4], [[5, 6], [7], [8, 9, 10], [5]], rewards, version=0) for ordinal in (4, 2)]
    learner = make_learner(llama, advantages="group", normalize_advantages=False, reward_clip=5.0)
    report, _ = learner.step(0, groups)
    assert [group.ordinal for group in report.groups] == [2, 4]
    for group in report.groups:
        assert group.rewards_G == rewards  # as they were given, not as they were clipped
        mean = (1 + 3 + 5) / 3
        assert group.advantages_G == (
            pytest.approx(1 - mean), None, pytest.approx(3 - mean), pytest.approx(5 - mean)
        )  # fmt: skip


def test_a_rollout_of_which_no_token_trains_has_no_advantage(llama):
    learner = make_learner(llama, max_token_staleness=0)
    learner.version = 3
    old, young = random_groups(2, 2, version=2), random_groups(2, 2, version=3)
    young = [
        dataclasses.replace(
            one,
            group=dataclasses.replace(one.group, ordinal=one.group.ordinal + 2),
            feedback=dataclasses.replace(one.feedback, ordinal=one.group.ordinal + 2),
        )
        for one in young
    ]
    report, _ = learner.step(3, [*old, *young])
    told = {group.ordinal: group.advantages_G for group in report.groups}
    assert {one for ordinal in (0, 1) for one in told[ordinal]} == {None}
    assert all(isinstance(one, float) and np.isfinite(one) for ordinal in (2, 3) for one in told[ordinal])


def test_noise_of_16_bits_is_not_measured_for_engines_that_compute_in_float32(llama):
    learner = build_learner(LearnConfig(), model=llama, temperature=1.0, seed=0, engines_in_float32=True)
    assert learner.initial_weights().canary_noise == 0.0
    assert make_learner(llama).initial_weights().canary_logprobs == learner.initial_weights().canary_logprobs


def test_each_token_beyond_the_free_ones_costs_and_the_verdict_stays():
    answers, rewards = [[5] * 4, [6] * 10, [7] * 2], [1.0, 1.0, None]
    batch = Batch.of([make_group(0, [3], answers, rewards)], length_penalty=0.5, length_free=6)
    assert batch.reward_R.tolist() == [1.0, -1.0]
    assert batch.baseline_rewards == ((1.0, -1.0, None),)
    assert batch.group_rewards == ((1.0, 1.0, None),)


@pytest.mark.parametrize("objective", ["ppo", "group_relative", "online_dpo"])
def test_of_two_equally_good_answers_the_shorter_one_becomes_likelier(llama, objective):
    config = LearnConfig(objective=objective, learning_rate=1e-3, length_penalty=0.3, minibatches=1)
    learner = build_learner(config, model=llama, temperature=1.0, seed=0)
    short, long = [5, 6], [8, 9, 10, 11, 12, 13]

    def gap():
        model = model_from(learner.initial_weights(), llama)
        told = [sum(logprobs_of_sequence(model, [3, 4, *answer])[1:]) for answer in (short, long)]
        return told[0] - told[1]

    before = gap()
    for step in range(4):
        model = model_from(learner.initial_weights(), llama)
        logprobs = [logprobs_of_sequence(model, [3, 4, *answer])[1:] for answer in (short, long)]
        learner.step(step, [make_group(0, [3, 4], [short, long], [1.0, 1.0], logprobs=logprobs, version=step)])
    assert gap() > before + 0.05
