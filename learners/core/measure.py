"""Metrics of a batch of rollouts, and the outcome of every rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learners.core.batch import Batch
from learners.core.packing import Microbatch
from solon.records import TrainedGroup, TrainingGroup


def batch_metrics(batch: Batch, step: int, microbatches: Sequence[Microbatch]) -> dict[str, float]:
    """Rewards, lengths, staleness and padding of a batch; keys `what/stat`."""
    total = sum(len(rewards) for rewards in batch.group_rewards)
    valid = np.array([r for rewards in batch.group_rewards for r in rewards if r is not None])
    spreads = [
        np.std([r for r in rewards if r is not None])
        for rewards in batch.group_rewards
        if any(r is not None for r in rewards)
    ]
    age_N = step - batch.version_N
    oldest_R = np.maximum.reduceat(age_N, batch.start_R)
    padded = sum(microbatch.padded for microbatch in microbatches)
    used = sum(microbatch.used for microbatch in microbatches)
    apart = sum(len(batch.prompts[p]) for p in batch.group_R) + batch.num_tokens - batch.num_rollouts
    return {
        "reward/mean": float(valid.mean()),
        "reward/std": float(valid.std()),
        "reward/min": float(valid.min()),
        "reward/max": float(valid.max()),
        "reward_in_group/std": float(np.mean(spreads)),
        "reward_valid/share": len(valid) / total,
        "rollouts/sum": float(batch.num_rollouts),
        "groups/sum": float(len(batch.ordinals)),
        "tokens/sum": float(batch.num_tokens),
        "response_length/mean": float(batch.length_R.mean()),
        "response_length/max": float(batch.length_R.max()),
        "truncated/share": float(batch.truncated_R.mean()),
        "staleness/mean": float(age_N.mean()),
        "staleness/p50": float(np.median(oldest_R)),
        "staleness/max": float(oldest_R.max()),
        "padding/share": 1.0 - used / padded,
        "shared_prompt/share": 1.0 - used / apart,
    }


def groups_without_advantages(groups: Sequence[TrainingGroup]) -> tuple[TrainedGroup, ...]:
    """The rewards of a batch, in the order of the ordinals, for an objective that has no advantages."""
    return tuple(
        TrainedGroup(
            ordinal=group.group.ordinal,
            attempt=group.group.attempt,
            rewards_G=group.feedback.rewards_G,
            advantages_G=(None,) * len(group.group.rollouts),
        )
        for group in sorted(groups, key=lambda group: group.group.ordinal)
    )
