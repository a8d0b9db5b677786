"""The reward and advantage of every rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learners.core.batch import Batch
from learners.policy_gradient.targets import Targets
from solon.records import TrainedGroup, TrainingGroup


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
