"""One step of each objective against a plain loop: one answer at a time, no packing, no microbatches."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.trainer import Trainer
from learners.networks.reward_model import PreferencePair, RewardModel
from learners.networks.student import Student
from learners.objectives.distil import DistilConfig, DistilObjective, Lesson
from learners.objectives.reward_model import RewardModelConfig, RewardModelObjective
from solon.feedback.questions import Question
from solon.records import TrainingGroup
from tests.unit.learner_builders import make_group, put, write_llama

RATE = 1e-3
PROMPT = [3, 4, 5]
ANSWERS = [[6, 7, 8, 9], [10, 11], [12, 13, 14]]
REWARDS = [1.0, -0.5, 0.25]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


def logprobs_of_answer(model: nn.Module, answer: list[int]) -> Tensor:
    ids = torch.tensor([[*PROMPT, *answer]])
    logprobs = model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, ids[0, len(PROMPT) :, None])[:, 0]


def groups_of(model: nn.Module) -> list[TrainingGroup]:
    """One group that the model itself wrote: every importance weight is 1."""
    with torch.no_grad():
        logprobs = [logprobs_of_answer(model, answer).tolist() for answer in ANSWERS]
    return [make_group(0, PROMPT, ANSWERS, REWARDS, logprobs=logprobs)]


def adamw(module: nn.Module, rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def step_of(module: nn.Module, loss: Tensor, rate: float) -> float:
    """One clipped step of AdamW; returns the norm of the gradient."""
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(module.parameters(), 1.0))
    adamw(module, rate).step()
    return norm


def assert_same_weights(ours: nn.Module, plain: nn.Module) -> None:
    """Adam divides by the gradient's size: where that is rounding noise a step may differ, by a share of the rate."""
    expected = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=RATE / 50, rtol=1e-4, msg=name)


def test_a_step_of_group_relative_is_a_plain_policy_gradient_of_the_compared_rewards(llama: str):
    plain = AutoModelForCausalLM.from_pretrained(llama).eval()
    config = LearnConfig(
        objective="group_relative", learning_rate=RATE, minibatches=1, kl_coefficient=0.0, share_prompts=False
    )
    learner = build_learner(config, model=llama, temperature=1.0, seed=0)
    report, weights = learner.step(0, groups_of(plain))

    rewards = np.array(REWARDS)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    total = sum(map(len, ANSWERS))
    loss = -sum((a * logprobs_of_answer(plain, answer)).sum() for a, answer in zip(advantages, ANSWERS, strict=True))
    norm = step_of(plain, loss / total, RATE)
    assert report.metrics["learn/grad_norm/max"] == pytest.approx(norm, rel=1e-4)
    published = put(weights, AutoModelForCausalLM.from_pretrained(llama))
    assert_same_weights(published, plain)


def test_a_step_of_ppo_moves_policy_by_whitened_advantages_and_critic_by_squared_error(llama: str):
    plain = AutoModelForCausalLM.from_pretrained(llama).eval()
    config = LearnConfig(
        objective="ppo", learning_rate=RATE, critic_learning_rate=RATE, minibatches=1, kl_coefficient=0.0
    )
    learner = build_learner(config, model=llama, temperature=1.0, seed=0)
    backbone, head = copy.deepcopy(plain.base_model), nn.Linear(32, 1)
    report, weights = learner.step(0, groups_of(plain))

    # A new critic returns the mean return everywhere, gamma = lambda = 1: a token's advantage is reward - mean.
    lengths = [len(answer) for answer in ANSWERS]
    returns_N = torch.tensor(np.repeat(REWARDS, lengths), dtype=torch.float32)
    errors_N = returns_N - returns_N.mean()
    advantages_N = errors_N / errors_N.std(correction=0)
    logprobs_N = torch.cat([logprobs_of_answer(plain, answer) for answer in ANSWERS])
    norm = step_of(plain, -(advantages_N * logprobs_N).mean(), RATE)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, float(returns_N.mean()))
    hidden_NH = torch.cat(
        [backbone(torch.tensor([[*PROMPT, *answer]]))[0][0, len(PROMPT) - 1 : -1] for answer in ANSWERS]
    )
    critic = nn.ModuleDict({"backbone": backbone, "head": head})
    critic_norm = step_of(critic, 0.5 * (head(hidden_NH)[:, 0] - returns_N).square().mean(), RATE)
    assert report.metrics["learn/grad_norm/max"] == pytest.approx(norm, rel=1e-4)
    assert report.metrics["learn/critic_grad_norm/max"] == pytest.approx(critic_norm, rel=1e-4)
    assert_same_weights(put(weights, AutoModelForCausalLM.from_pretrained(llama)), plain)
    assert_same_weights(learner.objective.critic.head, head)


def test_a_reward_model_and_a_student_resume_from_a_saved_state_equal_to_the_bit(llama: str, tmp_path: Path):
    pairs = [
        PreferencePair(first=(2, 5, 1), second=(2, 7, 9, 1), p=0.8),
        PreferencePair(first=(3, 1), second=(4, 1), p=0.1),
    ]
    lessons = [
        Lesson(question=Question((3, 4), (30, 31)), margin=2.0),
        Lesson(question=Question((5,), (30, 31)), margin=-1.0),
    ]

    def reward_model() -> Trainer:
        config = RewardModelConfig(learning_rate=RATE)
        model = RewardModel.load(llama, pad_id=0, device="cpu")
        return Trainer(RewardModelObjective(model, config), config, schedule=config.rates(4), seed=0)

    def student() -> Trainer:
        config = DistilConfig(learning_rate=RATE)
        return Trainer(DistilObjective(Student.load(llama), config), config, schedule=config.rates(4), seed=0)

    for make, batch in ((reward_model, pairs), (student, lessons)):
        trainer, resumed = make(), make()
        losses = [trainer.train(step, batch).metrics["learn/loss/mean"] for step in range(2)]
        assert losses[1] < losses[0]
        trainer.save(tmp_path / make.__name__)
        resumed.load(tmp_path / make.__name__)
        reports = [one.train(2, batch) for one in (trainer, resumed)]
        assert reports[0].metrics["learn/loss/mean"] == reports[1].metrics["learn/loss/mean"]
        for part, optimizer in trainer.optimizers.items():
            again = resumed.optimizers[part].tensors()
            assert all(torch.equal(tensor, again[name]) for name, tensor in optimizer.tensors().items())
