"""How old a rollout may be when it is trained, and the two rules that enforce it.

staleness(group, step) = step - head(group), where head is the oldest policy version in the group and `step` trains
version `step` (weights after `step` updates). It includes the time in queues and with judges.

Two knobs. `target_staleness` shapes *admission*: how far generation runs ahead. `max_staleness` is the bound
that *consumption* never breaks. Why both are needed, and why the bound holds for every single group rather
than on average, is worked out in docs/decisions/0002-staleness.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StalenessConfig(BaseModel):
    """`StalenessConfig(target_staleness=0)` trains on-policy: nothing is generated while a batch is unpublished."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_staleness: int = Field(1, ge=0, le=64)
    """Steps that generation runs ahead of the published weights."""
    max_staleness: int = Field(4, ge=0, le=256)
    """Steps that a trained rollout may lag; never exceeded."""

    @model_validator(mode="after")
    def _target_within_bound(self) -> Self:
        if self.target_staleness > self.max_staleness:
            raise ValueError(
                f"target_staleness = {self.target_staleness} exceeds max_staleness = {self.max_staleness}, "
                "expected target <= max; lower target_staleness or raise max_staleness"
            )
        return self

    def credits(self, *, batch_groups: int, uncommitted: int, unpublished: int) -> int:
        """Groups that may be admitted now.

        uncommitted: groups generating, waiting, being judged or ready (judging counts: a slow judge slows
        generation instead of ageing rollouts). unpublished: groups leased or trained whose weights are not yet
        live. No cumulative counter enters, so a restart cannot get it wrong.
        """
        return max(0, (self.target_staleness + 1) * batch_groups - uncommitted - unpublished)

    def deadline(self, head: int) -> int:
        """Last step at which a group whose oldest token is of version `head` may be trained."""
        return head + self.max_staleness


def choose(
    ready: Sequence[tuple[int, int]], unfinished: Mapping[int, int], *, step: int, batch_groups: int
) -> list[int] | None:
    """Ordinals to train at `step`, or None: wait for older groups to become ready.

    ready: (deadline, ordinal) of labelled groups, sorted. unfinished: how many groups of each deadline are still being
    generated or judged. Earliest deadline first; a younger ready group may overtake an unfinished older one only if
    everything left behind can still be trained in time, `batch_groups` a step.
    """
    by_deadline = Counter(deadline for deadline, _ in ready)
    if not can_choose(by_deadline, unfinished, step=step, batch_groups=batch_groups):
        return None
    return [ordinal for _, ordinal in ready[:batch_groups]]


def can_choose(ready: Mapping[int, int], unfinished: Mapping[int, int], *, step: int, batch_groups: int) -> bool:
    """Whether `choose` finds a batch. ready: how many labelled groups have each deadline. Takes time by the number of
    different deadlines, not of groups."""
    if sum(ready.values()) < batch_groups:
        return False
    if any(deadline <= step for deadline in unfinished):
        return False
    left, missing = dict(unfinished), batch_groups
    for deadline in sorted(ready):
        taken = min(missing, ready[deadline])
        missing -= taken
        if ready[deadline] > taken:
            left[deadline] = left.get(deadline, 0) + ready[deadline] - taken
    total, due = sum(left.values()), 0
    for deadline in sorted(left):
        if deadline > step + total:  # all the rest fit in any case
            return True
        due += left[deadline]
        if due > (deadline - step) * batch_groups:
            return False
    return True
