"""The learner of a run, built from `[learn]`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from learners.config import LearnConfig
from learners.core.loading import choose_device, refuse_experts, require_divisible
from learners.core.offload import refuse_without_effect
from learners.core.packing import Microbatch
from learners.core.policy_objective import PolicySource
from learners.core.publish import Publisher
from learners.core.ranks import ALONE, Ranks
from learners.core.trainer import Trainer
from learners.objectives import find_for_policy
from solon.records import NO_FILTERS, Filters, TrainingGroup

Learner = Trainer[Sequence[TrainingGroup], Microbatch]
"""Trains the policy of a run on labelled groups and publishes it."""


def build_learner(
    config: LearnConfig,
    *,
    model: str,
    temperature: float,
    filters: Filters = NO_FILTERS,
    end_ids: Sequence[int] = (),
    seed: int,
    name: str = "learner-0",
    canaries: Sequence[Sequence[int]] | None = None,
    engines_in_float32: bool = False,
    adapter_only: bool = False,
    ranks: Ranks = ALONE,
) -> Learner:
    """A trainer with the objective that the configuration names.

        learner = build_learner(LearnConfig(), model="models/policy", temperature=1.0, seed=0)
        weights = learner.initial_weights()
        report, weights = learner.step(0, groups)

    temperature, filters: the sampling of the rollouts; end_ids: the tokens that end them (for `min_tokens`);
    canaries: token ids whose log-probs travel with the weights (None: a few drawn from the vocabulary);
    engines_in_float32, adapter_only: see `Publisher`; ranks: the processes that train together, each of which builds a
    learner.
    Raises InputError for a model that cannot be trained.
    """
    refuse_without_effect(config, choose_device(config.device))
    torch.set_num_threads(config.threads)
    refuse_experts(model)
    if not ranks.is_alone:
        require_divisible(model)
    source = PolicySource(model=model, temperature=temperature, filters=filters, end_ids=end_ids, ranks=ranks)
    # Adapters are initialised at random; the caller's generator is left unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = find_for_policy(config.objective_name)(config, source)
    objective.divide(ranks)
    publisher = Publisher(
        objective.policy,
        model=model,
        dtype=config.serving_dtype,
        canaries=canaries,
        engines_in_float32=engines_in_float32,
        adapter_only=adapter_only,
    )
    return Trainer(objective, config, schedule=config.rate, seed=seed, name=name, publisher=publisher)
