"""Metrics of a batch, and the reward and advantage of every rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learners.core.batch import Batch
from learners.core.packing import Microbatch
from learners.policy_gradient.targets import Targets
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


def trained_groups(groups: Sequence[TrainingGroup], batch: Batch, targets: Targets) -> tuple[TrainedGroup, ...]:
    """Reward and advantage of every rollout of a batch, in the order of the ordinals.

    The advantage of a rollout is the mean over its tokens of weight above 0: with a critic they differ from token to
    token, and masked ones train nothing.
    """
    kept_N = (targets.weights_N > 0).cpu().numpy()
    sums_R = np.bincount(batch.rollout_N, targets.advantages_N.cpu().numpy() * kept_N, minlength=batch.num_rollouts)
    tokens_R = np.bincount(batch.rollout_N, kept_N, minlength=batch.num_rollouts)
    advantage = {
        (int(p), int(member)): float(total / tokens)
        for p, member, total, tokens in zip(batch.group_R, batch.member_R, sums_R, tokens_R, strict=True)
        if tokens
    }
    ordered = sorted(groups, key=lambda group: group.group.ordinal)
    return tuple(
        TrainedGroup(
            ordinal=group.group.ordinal,
            attempt=group.group.attempt,
            rewards_G=group.feedback.rewards_G,
            advantages_G=tuple(advantage.get((p, member)) for member in range(len(group.group.rollouts))),
        )
        for p, group in enumerate(ordered)
    )
