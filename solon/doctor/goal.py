"""Whether a run that reached its last step achieved its purpose. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from solon.ledger.drops import ENOUGH_GROUPS, excess
from solon.telemetry.movement import Movement


def end_failure(movement: Movement, dropped: Mapping[str, int], committed: int, *, allowed: float) -> str | None:
    """Why a run that has trained all of its steps still failed; None: it did not.

    It failed when no step moved the policy, and when more of its groups were dropped than `ledger.max_dropped_share`
    allows, the same rule as during the run. A share of fewer than 40 groups says little: `end_warnings` reports it.
    """
    if movement.trained_nothing:
        return f"the run trained nothing: {movement.verdict()[0]}. Its checkpoint holds the policy as it was"
    if sum(dropped.values()) + committed < ENOUGH_GROUPS:
        return None
    return excess(dropped, committed, allowed)


def end_warnings(
    movement: Movement, dropped: Mapping[str, int], committed: int, *, allowed: float, failure: str = ""
) -> list[str]:
    """Other warnings about the run; those in `failure` are not repeated."""
    drops = excess(dropped, committed, allowed)
    return [text for text in (*movement.verdict(), *([drops] if drops else [])) if text not in failure]
