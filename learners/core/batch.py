"""A batch of groups, flattened into arrays: the one place where rollouts without a reward are left out.

P groups (one prompt each), R trained rollouts, N their response tokens end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.core.config import Truncated
from solon.errors import RunFailedError
from solon.records import Rollout, TrainingGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The data of one step, in the order of the ordinals. Built by `Batch.of(groups)`."""

    ordinals: tuple[int, ...]  # [P]
    prompts: tuple[NDArray[np.int64], ...]  # [P], token ids
    group_rewards: tuple[tuple[float | None, ...], ...]  # [P][G], as labelled, clipped; None: no valid label
    baseline_rewards: tuple[tuple[float | None, ...], ...]
    """[P][G], the rewards that are compared within a group: less the penalty of a truncated rollout; None also where
    `truncated="mask"` leaves it out."""
    group_R: NDArray[np.int64]
    """Group of every trained rollout, an index into `prompts`."""
    member_R: NDArray[np.int64]
    """Its place in the group."""
    length_R: NDArray[np.int64]
    """Number of its response tokens."""
    start_R: NDArray[np.int64]
    """Where its tokens begin in the arrays of N."""
    reward_R: NDArray[np.float32]
    """The reward to learn from: less the penalty of a truncated answer."""
    truncated_R: NDArray[np.bool_]
    """Stopped by the length limit, not by itself."""
    token_N: NDArray[np.int64]
    behaviour_N: NDArray[np.float32]
    """log mu: the engine's log-prob of every token."""
    version_N: NDArray[np.int64]
    rollout_N: NDArray[np.int64]
    """Rollout of every token, an index into the arrays of R."""

    @classmethod
    def of(
        cls,
        groups: Sequence[TrainingGroup],
        *,
        reward_clip: float | None = None,
        truncated: Truncated = "keep",
        truncated_penalty: float = 0.0,
        length_penalty: float = 0.0,
        length_free: int = 0,
        vocabulary: int | None = None,
    ) -> Batch:
        """Sorted by ordinal, so that arrival order changes nothing; rollouts without reward or tokens left out.

        `truncated`: how answers cut by the length limit are treated; `mask` leaves them out of `baseline_rewards`,
        `penalise` takes `truncated_penalty` nats off their reward. `length_penalty`: nats that every answer loses for
        each token beyond `length_free`.
        Raises RunFailedError when nothing is left, when a group is a duplicate or has no prompt, when a rollout
        contradicts itself, or when it has a token that is not below `vocabulary`.
        """
        groups = sorted(groups, key=lambda g: g.group.ordinal)
        ordinals = tuple(g.group.ordinal for g in groups)
        if len(set(ordinals)) != len(ordinals):
            raise RunFailedError(f"a batch holds a group twice: ordinals {list(ordinals)}")
        group_rewards = tuple(_rewards(group, reward_clip) for group in groups)
        costs = _Costs(truncated_penalty if truncated == "penalise" else 0.0, length_penalty, length_free)
        trained = [
            (p, member, rollout, reward)
            for p, group in enumerate(groups)
            for member, (rollout, reward) in enumerate(zip(group.group.rollouts, group_rewards[p], strict=True))
            if reward is not None and len(rollout.token_ids)
        ]
        if not trained:
            raise RunFailedError(
                f"none of the {sum(map(len, group_rewards))} rollouts of {len(groups)} groups has a reward, "
                "expected at least one; look at the label statuses in events.jsonl and labels/"
            )
        _require_prompts(groups)
        for p, member, rollout, _ in trained:
            _check(rollout, f"rollout {member} of group {ordinals[p]}", vocabulary)
        length_R = np.array([len(rollout.token_ids) for _, _, rollout, _ in trained], np.int64)
        return cls(
            ordinals=ordinals,
            prompts=tuple(np.asarray(g.group.prompt_token_ids, np.int64) for g in groups),
            group_rewards=group_rewards,
            baseline_rewards=tuple(
                _baseline_rewards(group, rewards, masked=truncated == "mask", costs=costs)
                for group, rewards in zip(groups, group_rewards, strict=True)
            ),
            group_R=np.array([p for p, _, _, _ in trained], np.int64),
            member_R=np.array([member for _, member, _, _ in trained], np.int64),
            length_R=length_R,
            start_R=np.cumsum(length_R) - length_R,
            reward_R=np.array([reward - costs.of(rollout) for _, _, rollout, reward in trained], np.float32),
            truncated_R=np.array([_is_truncated(rollout) for _, _, rollout, _ in trained]),
            token_N=np.concatenate([rollout.token_ids for _, _, rollout, _ in trained]).astype(np.int64),
            behaviour_N=np.concatenate([rollout.logprobs for _, _, rollout, _ in trained]).astype(np.float32),
            version_N=np.concatenate([rollout.versions_T() for _, _, rollout, _ in trained]).astype(np.int64),
            rollout_N=np.repeat(np.arange(len(trained)), length_R),
        )

    @property
    def num_rollouts(self) -> int:
        return len(self.length_R)

    @property
    def num_tokens(self) -> int:
        """Response tokens that are trained."""
        return len(self.token_N)

    def rollouts_of(self, groups: Sequence[int]) -> list[int]:
        """Indices of the trained rollouts of these groups."""
        return [int(r) for r in np.flatnonzero(np.isin(self.group_R, list(groups)))]

    def trained_groups(self) -> list[int]:
        """Indices of the groups that have a rollout to train."""
        return [int(p) for p in np.unique(self.group_R)]


def _require_prompts(groups: Sequence[TrainingGroup]) -> None:
    for group in groups:
        if not len(group.group.prompt_token_ids):
            raise RunFailedError(f"group {group.group.ordinal} has an empty prompt, expected a token before the answer")


def _check(rollout: Rollout, name: str, vocabulary: int | None) -> None:
    tokens, behaviour = len(rollout.token_ids), rollout.logprobs
    if len(behaviour) != tokens or sum(n for _, n in rollout.segments) != tokens:
        raise RunFailedError(
            f"{name} has {tokens} tokens, {len(behaviour)} log-probs and segments {rollout.segments}, "
            "expected one log-prob and one version per token"
        )
    if not np.isfinite(behaviour).all():
        raise RunFailedError(f"{name} has a log-prob that is not finite")
    if vocabulary is not None and not 0 <= rollout.token_ids.min() <= rollout.token_ids.max() < vocabulary:
        raise RunFailedError(
            f"{name} has the token {rollout.token_ids.max()}, expected one below {vocabulary}; "
            "the engines and the learner must load the same model"
        )


@dataclass(frozen=True, slots=True)
class _Costs:
    """What an answer loses for its form, nats."""

    truncated: float
    token: float
    free: int

    def of(self, rollout: Rollout) -> float:
        beyond = max(0, len(rollout.token_ids) - self.free)
        return self.truncated * _is_truncated(rollout) + self.token * beyond


def _is_truncated(rollout: Rollout) -> bool:
    return rollout.finish_reason == "length"


def _baseline_rewards(
    group: TrainingGroup, rewards: Sequence[float | None], *, masked: bool, costs: _Costs
) -> tuple[float | None, ...]:
    """Rewards of a group less the costs of form; truncated answers may be left out."""
    return tuple(
        None if reward is None or (masked and _is_truncated(rollout)) else reward - costs.of(rollout)
        for reward, rollout in zip(rewards, group.group.rollouts, strict=True)
    )


def _rewards(group: TrainingGroup, clip: float | None) -> tuple[float | None, ...]:
    """Rewards of a group, clipped; checked to belong to its rollouts and to be finite."""
    rewards, ordinal = group.feedback.rewards_G, group.group.ordinal
    if group.feedback.ordinal != ordinal or len(rewards) != len(group.group.rollouts):
        raise RunFailedError(
            f"group {ordinal} with {len(group.group.rollouts)} rollouts came with the feedback of group "
            f"{group.feedback.ordinal}, {len(rewards)} rewards"
        )
    for reward in rewards:
        if reward is not None and not np.isfinite(reward):
            raise RunFailedError(f"group {ordinal} has the reward {reward}, expected a finite number or None")
    if clip is None:
        return rewards
    return tuple(None if r is None else min(max(r, -clip), clip) for r in rewards)
