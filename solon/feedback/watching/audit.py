"""Selects the rollouts that a second judge reads, and pairs its rewards with the judge's.

The selection is a hash of the run's seed and the rollout's position, so that every rollout has the same chance whatever
its text and its reward: plain means over the audited rollouts are unbiased. Nothing here makes a reward: gold only
monitors, and a policy trained on it would exploit it like any other judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from solon.records import Feedback, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """The rewards of one rollout by the judge and by gold, nats. Audited(step=12, ordinal=96, proxy=1.4, gold=0.3)"""

    step: int
    """Policy version that wrote it."""
    ordinal: int
    proxy: float
    gold: float


def chosen(ordinal: int, attempt: int, num_rollouts: int, *, share: float, seed: int) -> tuple[int, ...]:
    """Rollouts of a group that gold reads; with a small share most groups have none."""
    return tuple(index for index in range(num_rollouts) if _draw(seed, ordinal, attempt, index) < share)


def excerpt(group: Group, rollouts: Sequence[int]) -> Group:
    """The group with only these rollouts, as gold sees it."""
    return replace(group, rollouts=tuple(group.rollouts[index] for index in rollouts))


def pair_up(group: Group, rollouts: Sequence[int], proxy: Feedback, gold: Feedback) -> tuple[tuple[Audited, ...], int]:
    """Both rewards of the audited rollouts, and the number of rollouts for which one is missing.

    proxy: feedback on the whole group. gold: feedback on its `excerpt`, in the order of `rollouts`.
    """
    if len(gold.rewards_G) != len(rollouts) or len(proxy.rewards_G) != len(group.rollouts):
        raise ValueError(
            f"got {len(proxy.rewards_G)} rewards and {len(gold.rewards_G)} of gold, expected "
            f"{len(group.rollouts)} and {len(rollouts)}; pass the feedback on the group and on its excerpt"
        )
    pairs = tuple(
        Audited(step=group.rollouts[index].tail, ordinal=group.ordinal, proxy=reward, gold=found)
        for index, found in zip(rollouts, gold.rewards_G, strict=True)
        if (reward := proxy.rewards_G[index]) is not None and found is not None
    )
    return pairs, len(rollouts) - len(pairs)


def _draw(seed: int, ordinal: int, attempt: int, index: int) -> float:
    """Uniform in [0, 1), the same for the same position in the same run."""
    place = f"{seed}:{ordinal}:{attempt}:{index}"
    digest = hashlib.sha256(b"gold audit:" + place.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
