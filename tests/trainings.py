"""Every objective of the house on random data: five steps on some number of ranks, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from learners.build import build_learner
from learners.config import LearnConfig, LoraConfig
from learners.core.objective import Objective
from learners.core.policy import Policy
from learners.core.ranks import Ranks
from learners.core.sharding import full
from learners.core.trainer import Trainer
from learners.direct.config import DirectConfig, RatingConfig
from learners.direct.pairs import AnswerPair, RatedAnswer
from learners.networks.reward_model import PreferencePair, RewardModel
from learners.networks.student import Student
from learners.objectives.distil import DistilConfig, DistilObjective, Lesson
from learners.objectives.dpo import DPOObjective, with_reference
from learners.objectives.kto import KTOObjective
from learners.objectives.reward_model import RewardModelConfig, RewardModelObjective
from solon.feedback.questions import Question
from tests.unit.learner_builders import random_groups

RUNS = ("ppo", "group_relative", "online_dpo")
OFFLINE = ("dpo", "kto", "reward_model", "distil")
STEPS = 5
RATE = 1e-3
SMALL = 64
"""Tokens of a microbatch: every rank accumulates several."""

Result = dict[str, Any]
"""losses, gradient norms, and whole weights after the last step."""


def train(ranks: Ranks, name: str, model: str, options: dict[str, Any]) -> Result:
    """Five steps of an objective. options: `lora`, further settings."""
    torch.manual_seed(0)
    trainer, batches = _run(ranks, name, model, options) if name in RUNS else _offline(ranks, name, model, options)
    losses, norms = [], []
    for step, batch in enumerate(batches):
        metrics = trainer.train(step, batch).metrics
        losses.append(next(metrics[key] for key in ("learn/loss/mean", "learn/policy_loss/mean") if key in metrics))
        norms.append(metrics["learn/grad_norm/mean"])
    weights = {
        f"{part}/{name}": full(parameter.detach()).clone()
        for part, optimizer in trainer.optimizers.items()
        for name, parameter in optimizer.parameters.items()
    }
    return {"losses": losses, "norms": norms, "weights": weights}


def train_all(ranks: Ranks, cases: Sequence[tuple[str, dict[str, Any]]], model: str) -> list[Result]:
    """Several cases, one after the other."""
    return [train(ranks, name, model, options) for name, options in cases]


def apart(one: Result, other: Result) -> float:
    """The largest relative distance (l2) of a tensor of weights."""
    assert one["weights"].keys() == other["weights"].keys()
    return max(
        float((value - other["weights"][name]).norm() / max(float(value.norm()), 1e-12))
        for name, value in one["weights"].items()
    )


def _run(ranks: Ranks, name: str, model: str, options: dict[str, Any]) -> tuple[Trainer[Any, Any], Sequence[Any]]:
    given = {"objective": name, "learning_rate": RATE, "minibatches": 2, "max_tokens_per_microbatch": SMALL} | options
    if name != "online_dpo":
        given |= {"kl_coefficient": 0.05}
    if name == "ppo":
        given |= {"critic_learning_rate": RATE}
    if targets := given.pop("lora", False):
        given["lora"] = LoraConfig(r=4, alpha=8, **({} if targets is True else {"target_modules": targets}))
    learner = build_learner(LearnConfig(**given), model=model, temperature=0.9, seed=0, ranks=ranks)
    return learner, [random_groups(5, 3, seed=step, version=step) for step in range(STEPS)]


def _offline(ranks: Ranks, name: str, model: str, options: dict[str, Any]) -> tuple[Trainer[Any, Any], Sequence[Any]]:
    rng = np.random.default_rng(0)

    def tokens(low: int = 2, high: int = 9) -> tuple[int, ...]:
        return (*rng.integers(3, 28, rng.integers(low, high)).tolist(), 1)

    given = {"learning_rate": RATE, "max_tokens_per_microbatch": SMALL, "seed": 0} | options
    if targets := given.pop("lora", False):
        given["lora"] = LoraConfig(r=4, alpha=8, **({} if targets is True else {"target_modules": targets}))
    config: Any
    objective: Objective[Any, Any]
    examples: Sequence[Any]
    if name in ("dpo", "kto"):
        config = (DirectConfig if name == "dpo" else RatingConfig)(**given)
        policy = Policy(config, model=model, temperature=1.0, reference=name == "kto", ranks=ranks)
        policy.divide()
        if name == "dpo":
            examples = [AnswerPair(prompt=tokens(), first=tokens(), second=(29, *tokens()), p=0.9) for _ in range(40)]
            examples = with_reference(policy, examples)
            objective = DPOObjective(policy, config)
        else:
            examples = [RatedAnswer(prompt=tokens(), answer=tokens(), good=float(n % 2)) for n in range(40)]
            objective = KTOObjective(policy, config)
    elif name == "reward_model":
        config = RewardModelConfig(head_learning_rate=RATE, **given)
        objective = RewardModelObjective(RewardModel.load(model, pad_id=0, device="cpu"), config)
        examples = [PreferencePair(first=tokens(), second=tokens(), p=0.8) for _ in range(40)]
    else:
        config = DistilConfig(**given)
        objective = DistilObjective(Student.load(model, device="cpu"), config)
        examples = [Lesson(question=Question(tokens(), (30, 31)), margin=float(n % 5 - 2)) for n in range(40)]
    objective.divide(ranks)
    trainer: Trainer[Any, Any] = Trainer(objective, config, schedule=lambda _: 1.0, seed=0)
    return trainer, [examples[8 * step : 8 * step + 8] for step in range(STEPS)]
