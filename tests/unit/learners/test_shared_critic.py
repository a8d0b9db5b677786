"""A critic on the policy's own hidden states: its values, its gradients, and a checkpoint of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.build import Learner, build_learner
from learners.config import LearnConfig, LoraConfig
from learners.core import head
from learners.networks.critic import ValueHead
from learners.objectives.ppo import PPOObjective
from solon.errors import InputError
from tests.unit.learner_builders import VOCABULARY, random_groups, write_llama

LORA = LoraConfig(r=4, alpha=8)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


def learner_of(model: str, **changes: Any) -> Learner:
    options = {"critic": "shared", "learning_rate": 1e-3, "critic_learning_rate": 1e-2} | changes
    return build_learner(LearnConfig(**options), model=model, temperature=1.0, seed=0)


def taught(model: str, **changes: Any) -> Learner:
    """A learner after a step, whose value head is no longer 0."""
    learner = learner_of(model, **changes)
    learner.train(0, random_groups())
    return learner


def gradients(learner: Learner, version: int = 1) -> tuple[Tensor, Tensor]:
    """Of the policy and of the value head in one minibatch."""
    objective = learner.objective
    prepared = objective.prepare(random_groups(seed=version, version=version), learner.context(version))
    minibatch = next(iter(prepared.minibatches))
    for microbatch in minibatch.microbatches:
        for loss, _ in objective.loss(microbatch, minibatch.denominator):
            loss.backward()
    found = {}
    for name, part in objective.parts().items():
        some = [p.grad.flatten() for p in part.module.parameters() if p.grad is not None]
        found[name] = torch.cat(some).clone()
        part.module.zero_grad()
    return found["policy"], found["critic"]


def test_it_is_no_second_network(llama: str):
    shared, own = (learner_of(llama, critic=critic) for critic in ("shared", "own"))
    assert sum(p.numel() for p in shared.optimizers["critic"].parameters.values()) == 32 + 1
    assert sum(p.numel() for p in own.optimizers["critic"].parameters.values()) > 10_000
    assert shared.objective.policy.backbone is None


@pytest.mark.parametrize("changes", [{}, {"lora": LORA}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("rows", [3, 10**6])
def test_values_are_those_of_the_head_on_the_last_hidden_states(
    llama: str, changes: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(head.CHUNK, "cpu", rows * VOCABULARY)
    learner = taught(llama, **changes)
    objective = learner.objective
    assert isinstance(objective, PPOObjective)
    batch = objective.batch_of(random_groups(seed=5, version=1))
    (microbatch,) = objective.microbatches(batch, batch.trained_groups())
    policy = objective.policy
    with policy.autocast():
        base = policy.model.get_base_model() if policy.has_adapters else policy.model
        hidden = base.base_model(**microbatch.model_inputs()).last_hidden_state.flatten(0, 1)[microbatch.predict_M]
    expected = hidden.float() @ objective.critic.weight[0] + objective.critic.bias
    scored = policy.score(microbatch, entropy=True, reference=True, values=objective.beside)
    assert scored.values_M is not None
    torch.testing.assert_close(scored.values_M, expected)
    torch.testing.assert_close(policy.values(microbatch, objective.critic), expected)
    torch.testing.assert_close(scored.logprobs_M, policy.logprobs(microbatch))
    assert float(expected.detach().std()) > 0


@pytest.mark.parametrize("changes", [{}, {"lora": LORA}])
def test_the_coefficient_scales_what_reaches_the_body_and_not_what_reaches_the_head(
    llama: str, changes: dict[str, Any]
):
    learner = taught(llama, **changes)
    found = {}
    for coefficient in (0.0, 0.5, 1.0):
        learner.objective.critic.coefficient = coefficient
        found[coefficient] = gradients(learner)
    (none, of_head), (half, of_head_again), (whole, _) = found.values()
    torch.testing.assert_close(of_head, of_head_again)
    torch.testing.assert_close(half - none, (whole - none) / 2, atol=1e-6, rtol=1e-3)
    assert float((whole - none).norm()) > 0


def test_a_warm_up_moves_the_head_and_not_the_policy(llama: str):
    learner = learner_of(llama, critic_warmup_steps=3)
    before = learner.initial_weights().fingerprint
    learner.objective.prepare(random_groups(), learner.context(0))
    assert learner.initial_weights().fingerprint == before
    assert all(p.grad is None for p in learner.objective.policy.model.parameters())
    assert float(learner.objective.critic.weight.detach().norm()) > 0


@pytest.mark.parametrize("lora", [None, LORA])
def test_it_resumes_equal_to_the_bit(llama: str, lora: LoraConfig | None, tmp_path: Path):
    learner = taught(llama, lora=lora)
    learner.save(tmp_path / "saved")
    _, expected = learner.step(1, random_groups(seed=1, version=1))
    again = learner_of(llama, lora=lora)
    again.load(tmp_path / "saved")
    _, found = again.step(1, random_groups(seed=1, version=1))
    assert found.fingerprint == expected.fingerprint
    assert torch.equal(again.objective.critic.weight, learner.objective.critic.weight)
    with pytest.raises(InputError, match="does not fit this run"):
        learner_of(llama, lora=lora, critic="own").load(tmp_path / "saved")


def test_it_learns_the_mean_return_of_each_prompt(llama: str):
    """The body stands still, so that only the head can explain the returns."""
    learner = learner_of(
        llama, value_coefficient=0.0, learning_rate=1e-8, kl_coefficient=0.0, critic_learning_rate=0.05
    )
    metrics = [learner.train(step, random_groups(6, 4, version=step)).metrics for step in range(25)]
    explained = [one["learn/explained_variance/mean"] for one in metrics]
    assert explained[0] == pytest.approx(0.0, abs=1e-6)
    assert explained[-1] > 0.3


def test_a_head_starts_at_nothing_and_at_the_value_it_is_given():
    value_head = ValueHead(4, 0.1)
    assert value_head(torch.randn(3, 4)).tolist() == [0.0, 0.0, 0.0]
    value_head.start_at(2.5)
    assert value_head(torch.randn(3, 4)).tolist() == [2.5, 2.5, 2.5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"critic": "shared", "advantages": "group"}, "has no critic"),
        ({"critic": "own", "value_coefficient": 0.3}, "does not reach the policy"),
    ],
)
def test_settings_without_an_effect_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        LearnConfig(**changes)
