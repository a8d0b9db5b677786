"""The learner against a bare packed forward and backward of the same model in PyTorch.

Both sides compute the same passes over the same microbatches, in the learner's order: forward passes without gradient
for pi_prox, the reference and the critic's values, then forward and backward for every minibatch, a bound on the norm
of the gradients and one fused AdamW step for each network. Packing, advantages, losses and metrics are ours alone.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks._harness import Row
from benchmarks._rounds import Rounds, timed
from solon.records import Feedback, Group, Prompt, Rollout, TrainingGroup


def learner_rows(model: str, *, quick: bool, threads: int) -> list[Row]:
    """Response tokens per second of `Trainer.train` in float32 and bfloat16, with a critic and without."""
    groups, size, rounds = (2, 4, 2) if quick else (4, 4, 4)
    rows: list[Row] = []
    kinds = [("group_relative", "float32"), ("ppo", "float32"), ("group_relative", "bfloat16")]
    for objective, dtype in kinds[-1:] if quick else kinds:
        rows += _compare(model, objective, dtype, groups=groups, size=size, rounds=rounds, threads=threads)
        gc.collect()
    return rows


def _compare(model: str, objective: str, dtype: str, *, groups: int, size: int, rounds: int, threads: int) -> list[Row]:
    from learners.build import build_learner
    from learners.config import LearnConfig

    config = LearnConfig.model_validate({"objective": objective, "dtype": dtype, "threads": threads})
    learner = build_learner(config, model=model, temperature=1.0, seed=0)
    batch = make_batch(learner, groups=groups, size=size)
    tokens = sum(len(rollout.token_ids) for item in batch for rollout in item.group.rollouts)
    bare = Bare(learner, batch)

    def ours(_: int) -> float:
        return timed(lambda: learner.train(learner.version, batch))

    def theirs(_: int) -> float:
        return timed(bare.step)

    measured = Rounds(f"learner, {objective}, {dtype}: response tokens/s (reference: bare PyTorch)", float(tokens))
    ours(0)  # the first step allocates the optimisers' moments
    theirs(0)
    measured.take(rounds, ours, theirs)
    return measured.rows(">= 0.9")


def make_batch(learner: Any, *, groups: int, size: int) -> list[TrainingGroup]:
    """Groups of random tokens, prompts of 40 and answers of 33 to 48 tokens, with the policy's own log-probs."""
    import torch

    rng = np.random.default_rng(0)
    policy = learner.objective.policy
    found = []
    for ordinal in range(groups):
        answers = [rng.integers(100, policy.vocabulary, rng.integers(33, 49)).astype(np.int32) for _ in range(size)]
        rewards = rng.normal(size=size)
        group = Group(
            ordinal=ordinal,
            attempt=0,
            prompt=Prompt(prompt_id=str(ordinal), messages=()),
            prompt_token_ids=rng.integers(100, policy.vocabulary, 40).astype(np.int32),
            rollouts=tuple(_rollout(answer, np.zeros(len(answer), np.float32)) for answer in answers),
        )
        feedback = Feedback(ordinal=ordinal, attempt=0, rewards_G=tuple(map(float, rewards)), labels=())
        found.append(TrainingGroup(group=group, feedback=feedback))
    arrays = learner.objective.batch_of(found)
    logprobs_N = np.zeros(arrays.num_tokens, np.float32)
    with torch.no_grad():
        for microbatch in learner.objective.microbatches(arrays, arrays.trained_groups()):
            logprobs_N[microbatch.index_M.numpy()] = policy.logprobs(microbatch).float().numpy()
    parts = iter(np.split(logprobs_N, np.cumsum(arrays.length_R)[:-1]))
    return [
        TrainingGroup(group=_with_logprobs(item.group, [next(parts) for _ in range(size)]), feedback=item.feedback)
        for item in found
    ]


def _rollout(token_ids: Any, logprobs: Any) -> Rollout:
    segments = ((0, len(token_ids)),)
    return Rollout(token_ids=token_ids, logprobs=logprobs, segments=segments, finish_reason="stop", text="")


def _with_logprobs(group: Group, logprobs: Sequence[Any]) -> Group:
    rollouts = tuple(_rollout(r.token_ids, found) for r, found in zip(group.rollouts, logprobs, strict=True))
    return Group(
        ordinal=group.ordinal,
        attempt=group.attempt,
        prompt=group.prompt,
        prompt_token_ids=group.prompt_token_ids,
        rollouts=rollouts,
    )


class Bare:
    """The same arithmetic in plain PyTorch, on copies of the learner's networks and on microbatches packed in advance.

    The output head runs on the response positions only, as in the learner.
    """

    def __init__(self, learner: Any, batch: Sequence[TrainingGroup]) -> None:
        import torch

        objective, config = learner.objective, learner.objective.config
        self._policy = copy.deepcopy(objective.policy.base)
        self._critic: Any = None
        if hasattr(objective, "critic"):
            self._critic = copy.deepcopy(objective.critic.backbone)
            self._value = torch.nn.Linear(objective.policy.hidden, 1)
        self._autocast = objective.policy.autocast
        # The reference has the same weights as the untrained policy, and costs the same.
        self._passes = 1 + (config.kl_coefficient > 0)
        arrays = objective.batch_of(batch)
        self._everything = objective.microbatches(arrays, arrays.trained_groups())
        self._minibatches = [m.microbatches for m in objective.minibatches(arrays, learner.context(0))]
        self._networks = [(list(self._policy.parameters()), config.learning_rate)]
        if self._critic is not None:
            critic = [*self._critic.parameters(), *self._value.parameters()]
            self._networks.append((critic, config.critic_learning_rate))
        self._optimizers = [
            torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
            for parameters, rate in self._networks
        ]

    def step(self) -> None:
        """The passes of one step of the learner."""
        import torch

        with torch.no_grad():
            for microbatch in self._everything:
                for _ in range(self._passes):
                    self._policy_loss(microbatch)
                if self._critic is not None:
                    self._values(microbatch)
        for microbatches in self._minibatches:
            for microbatch in microbatches:
                self._policy_loss(microbatch).backward()
                if self._critic is not None:
                    self._values(microbatch).pow(2).mean().backward()
            for (parameters, _), optimizer in zip(self._networks, self._optimizers, strict=True):
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()

    def _policy_loss(self, microbatch: Any) -> Any:
        import torch

        with self._autocast():
            hidden_BTH = self._policy.base_model(**microbatch.model_inputs()).last_hidden_state
            hidden_MH = hidden_BTH.flatten(0, 1).index_select(0, microbatch.predict_M)
            logits_MV = self._policy.get_output_embeddings()(hidden_MH).float()
        return torch.nn.functional.cross_entropy(logits_MV, microbatch.target_M)

    def _values(self, microbatch: Any) -> Any:
        with self._autocast():
            hidden_BTH = self._critic(**microbatch.model_inputs()).last_hidden_state
        hidden_MH = hidden_BTH.flatten(0, 1).index_select(0, microbatch.predict_M)
        return self._value(hidden_MH.float())[:, 0]
