"""The PPO learner: takes labelled groups, moves the policy, hands out the new weights.

N: response tokens of the batch; M: of a microbatch.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learners.batch import Batch
from learners.config import LearnConfig
from learners.critic import Critic
from learners.loading import refuse_experts
from learners.losses import Metrics, kl_loss, policy_loss, value_loss
from learners.measure import batch_metrics, trained_groups
from learners.optimizer import Optimizer
from learners.packing import Microbatch
from learners.policy import Policy
from learners.publish import Publisher
from learners.state import load_state, save_state
from learners.targets import Metric, Targets, TokenRewards, gather, group_advantages, mean_of, policy_targets
from solon.errors import RunFailedError
from solon.records import NO_FILTERS, Filters, Span, StepReport, TrainingGroup, Weights


class PPOLearner:
    """Asynchronous PPO from labelled groups.

        learner = PPOLearner(LearnConfig(), model="models/policy", temperature=1.0, seed=0)
        weights = learner.initial_weights()
        report, weights = learner.step(0, groups)

    The same seed, model and groups give the same weights, in whatever order the groups come. Every random
    draw comes from (seed, step), so a checkpoint needs no generator state.
    """

    def __init__(
        self,
        config: LearnConfig,
        *,
        model: str,
        temperature: float,
        filters: Filters = NO_FILTERS,
        end_ids: Sequence[int] = (),
        seed: int,
        name: str = "learner-0",
        canaries: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`temperature` and `filters` are those that rollouts are sampled with, `end_ids` the tokens that end them (for
        `min_tokens`); `canaries` are token ids whose log-probs travel
        with the weights (None: a few drawn from the vocabulary)."""
        torch.set_num_threads(config.threads)
        refuse_experts(model)
        self.config, self.name = config, name
        self.version = 0
        """Committed steps, which is the version of the weights."""
        self._seed = seed
        self._kl_configured = config.kl_coefficient
        # Adapters start from random numbers; the caller's generator is left alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._policy = Policy(config, model=model, temperature=temperature, filters=filters, end_ids=end_ids)
            self._critic: Critic | None = None
            if self._policy.backbone is not None:
                self._critic = Critic(self._policy.backbone, self._policy.hidden).to(self._policy.device)
            self._layout = self._policy.layout(config)
            self._publisher = Publisher(self._policy, model=model, dtype=config.serving_dtype, canaries=canaries)
        self._optimizers = {"policy": Optimizer(self._policy.model, config.learning_rate, config)}
        if self._critic is not None:
            self._optimizers["critic"] = Optimizer(self._critic, config.critic_learning_rate, config)

    def raise_kl(self, factor: float) -> float:
        """Multiply the KL coefficient, from the next step on; returns the new one."""
        self.config = self.config.model_copy(update={"kl_coefficient": self.config.kl_coefficient * factor})
        return self.config.kl_coefficient

    def initial_weights(self) -> Weights:
        """The weights as they stand: version 0, or after `load` the version of the checkpoint."""
        return self._publisher.weights(self.version)

    def step(self, step: int, groups: Sequence[TrainingGroup]) -> tuple[StepReport, Weights]:
        """One committed update of version `step`; returns its report and the weights of version `step + 1`.

        pi_prox, the reference and the values of the live critic are computed once, then every minibatch
        moves policy and critic. Raises RunFailedError when no rollout has a reward, when a token is not in
        the vocabulary, and when a loss or a gradient is not finite, before the optimiser takes it in.
        """
        if step != self.version:
            raise ValueError(f"step {step} handed to a learner at version {self.version}")
        started, clock = time.time(), time.perf_counter()
        batch = Batch.of(
            groups,
            reward_clip=self.config.reward_clip,
            truncated=self.config.truncated,
            truncated_penalty=self.config.truncated_penalty,
            vocabulary=self._policy.vocabulary,
        )
        everything = self._microbatches(batch, batch.trained_groups())
        targets, metrics = self._targets(step, batch, everything)
        prepared = time.perf_counter()
        metrics |= self._update(step, batch, targets)
        updated = time.perf_counter()
        self.version = step + 1
        weights = self._publisher.weights(self.version)
        metrics |= batch_metrics(batch, step, everything)
        metrics["learning_rate/mean"] = self.config.learning_rate * self.config.rate(step)
        metrics["prepare_s/sum"] = prepared - clock
        metrics["update_s/sum"] = updated - prepared
        metrics["export_s/sum"] = time.perf_counter() - updated
        span = Span(lane="learn", worker=self.name, name=f"step {step}", start_s=started, end_s=time.time())
        named = {f"learn/{key}": value for key, value in sorted(metrics.items())}
        moved = metrics["skipped/share"] < 1
        told = trained_groups(groups, batch, targets)
        return StepReport(step=step, metrics=named, spans=(span,), groups=told, moved=moved), weights

    def save(self, directory: str | Path) -> None:
        """Write `policy/`, a Hugging Face directory in the serving dtype, and beside it the learner's own
        state, exact to the bit."""
        directory = Path(directory)
        self._publisher.save(directory / "policy")
        counters = {"version": self.version, "seed": self._seed, "kl_coefficient": self.config.kl_coefficient}
        counters["kl_configured"] = self._kl_configured
        save_state(directory, self._optimizers, counters)

    def load(self, directory: str | Path) -> None:
        """Go on from a checkpoint of a learner with the same model and configuration. Raises InputError when it
        does not fit."""
        counters = load_state(Path(directory), self._optimizers)
        self.version = int(counters["version"])
        # It may have been raised since the run began; where the configuration is another one now, that holds.
        if counters.get("kl_configured", self._kl_configured) == self._kl_configured:
            self.config = self.config.model_copy(update={"kl_coefficient": counters["kl_coefficient"]})

    def _microbatches(self, batch: Batch, groups: Sequence[int]) -> list[Microbatch]:
        return self._layout.microbatches(batch, batch.rollouts_of(groups), self._policy.device)

    def _targets(self, step: int, batch: Batch, microbatches: Sequence[Microbatch]) -> tuple[Targets, Metric]:
        """What all minibatches of this step aim at."""
        prox_N, weights_N, reference_N, metrics = policy_targets(self.config, self._policy, batch, microbatches, step)
        values_N = returns_N = None
        kept_N = weights_N > 0
        if self._critic is None:
            advantages_N = group_advantages(self.config, batch, kept_N)
        else:
            rewards = TokenRewards(self.config, batch, prox_N, reference_N)
            if step == 0:
                self._start_critic(microbatches, rewards.to_go_N(), kept_N & rewards.has_return_N())
            with torch.no_grad():
                (values_N,) = gather(batch, microbatches, lambda m: (self._values(m),))
            advantages_N, returns_N, found = rewards.advantages(values_N, kept_N)
            metrics |= found
        metrics["advantage_abs/mean"] = mean_of(advantages_N.abs(), kept_N)
        return Targets(
            prox_N=prox_N,
            weights_N=weights_N,
            reference_N=reference_N,
            advantages_N=advantages_N,
            values_N=values_N,
            returns_N=returns_N,
        ), metrics

    def _values(self, microbatch: Microbatch) -> Tensor:
        assert self._critic is not None
        with self._policy.autocast():
            values_M: Tensor = self._critic(microbatch)
        return values_M

    def _start_critic(self, microbatches: Sequence[Microbatch], returns_N: Tensor, kept_N: Tensor) -> None:
        """Teach a new critic the mean return of the first batch, then `critic_warmup_steps` steps of the rest."""
        assert self._critic is not None
        self._critic.start_at(mean_of(returns_N, kept_N))
        for _ in range(self.config.critic_warmup_steps):
            for microbatch in microbatches:
                values_M, index_M = self._values(microbatch), microbatch.index_M
                loss, _ = value_loss(
                    values_M,
                    values_M.detach(),
                    returns_N[index_M],
                    denominator=len(returns_N),
                    clip=None,
                    kept_N=kept_N[index_M],
                )
                loss.backward()  # type: ignore[no-untyped-call]
            self._move("critic", 0, self._clip_gradients(0, {"critic warm-up": loss.detach()}, ("critic",))["critic"])

    def _update(self, step: int, batch: Batch, targets: Targets) -> Metric:
        """All optimiser steps on a batch; returns the means of their metrics."""
        totals: dict[str, list[Tensor]] = defaultdict(list)
        norms: dict[str, list[float]] = defaultdict(list)
        moved: dict[str, list[bool]] = defaultdict(list)
        for epoch in range(self.config.epochs):
            for minibatch in self._minibatches(step, epoch, batch):
                denominator = sum(microbatch.num_tokens for microbatch in minibatch)
                sums: Metrics = {}
                for microbatch in minibatch:
                    for key, value in self._backward(microbatch, targets, denominator).items():
                        sums[key] = sums[key] + value if key in sums else value
                for part, norm in self._clip_gradients(step, sums, tuple(self._optimizers)).items():
                    prefix = "" if part == "policy" else f"{part}_"
                    norms[f"{prefix}grad_norm"].append(norm)
                    moved[f"{prefix}skipped"].append(self._move(part, step, norm))
                for key, value in sums.items():
                    totals[key].append(value)
        metrics = {key: float(torch.stack(values).mean()) for key, values in totals.items()}
        metrics |= {f"{key}/mean": sum(values) / len(values) for key, values in norms.items()}
        metrics |= {f"{key}/max": max(values) for key, values in norms.items()}
        metrics |= {f"{key}/share": 1 - sum(values) / len(values) for key, values in moved.items()}
        return metrics

    def _move(self, part: str, step: int, norm: float) -> bool:
        """Take one optimiser step, unless nothing asks for it; returns whether it was taken.

        Where every token is masked or no answer is better than another, the gradient is exactly 0. A step would still
        move the parameters, by Adam's momentum of earlier batches.
        """
        if norm == 0:
            self._optimizers[part].clear()
            return False
        self._optimizers[part].apply(step)
        return True

    def _minibatches(self, step: int, epoch: int, batch: Batch) -> list[list[Microbatch]]:
        """The batch's groups in a new order, cut into minibatches of nearly equal size."""
        groups = np.array(batch.trained_groups())
        shuffled = np.random.default_rng((self._seed, step, epoch)).permutation(groups)
        parts = np.array_split(shuffled, min(self.config.minibatches, len(groups)))
        return [self._microbatches(batch, part.tolist()) for part in parts]

    def _backward(self, microbatch: Microbatch, targets: Targets, denominator: float) -> Metrics:
        """Add a microbatch's gradients to those of its minibatch; returns its share of the metrics."""
        config, index_M = self.config, microbatch.index_M
        scored = self._policy.score(microbatch, entropy=bool(config.entropy_bonus or config.bypass))
        logprobs_M, entropy_M, weights_M = scored.logprobs_M, scored.entropy_M, targets.weights_N[index_M]
        if scored.outside_M is not None:
            # The policy would not sample them any more: pi / pi_prox is 0 there, and has no gradient.
            weights_M = weights_M.masked_fill(scored.outside_M, 0.0)
        loss, metrics = policy_loss(
            logprobs_M,
            targets.prox_N[index_M],
            weights_M,
            targets.advantages_N[index_M],
            denominator=denominator,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
        )
        if entropy_M is not None:
            entropy = (entropy_M * (weights_M > 0)).sum() / denominator
            loss = loss - config.entropy_bonus * entropy
            metrics["update_entropy/mean"] = entropy.detach()
        if self._critic is None and targets.reference_N is not None:
            kl, found = kl_loss(
                logprobs_M,
                targets.prox_N[index_M],
                weights_M,
                targets.reference_N[index_M],
                denominator=denominator,
                estimator=config.kl_estimator,
            )
            loss = loss + config.kl_coefficient * kl
            metrics |= found
        loss.backward()  # type: ignore[no-untyped-call]
        if self._critic is not None:
            assert targets.values_N is not None
            assert targets.returns_N is not None
            loss, found = value_loss(
                self._values(microbatch),
                targets.values_N[index_M],
                targets.returns_N[index_M],
                denominator=denominator,
                clip=config.value_clip,
                kept_N=targets.weights_N[index_M] > 0,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            metrics |= found
        return metrics

    def _clip_gradients(self, step: int, losses: Metrics, parts: Sequence[str]) -> dict[str, float]:
        """Bound the gradients and return their norms; raises RunFailedError when something is not finite."""
        norms = {part: self._optimizers[part].clip() for part in parts}
        broken = {key: float(value) for key, value in losses.items() if not math.isfinite(float(value))}
        broken |= {f"{part} gradient norm": norm for part, norm in norms.items() if not math.isfinite(norm)}
        if broken:
            where = [f"{part}: {name}" for part in parts for name in self._optimizers[part].not_finite()][:3]
            raise RunFailedError(
                f"learning stopped at step {step} before its optimiser moved: not finite are "
                f"{', '.join(f'{key} ({value})' for key, value in broken.items())}"
                f"{', first in ' + ', '.join(where) if where else ''}; "
                "lower learn.learning_rate, or look at the rewards and log-probs of this batch"
            )
        return norms
