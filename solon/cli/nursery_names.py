"""`nursery:` names denote files that the nursery grows on this machine, once."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from solon.host.user_folders import cache_folder, unusable

if TYPE_CHECKING:
    from nursery.grow import Nursery

NAMES = (
    "policy", "judge", "judge_fp", "audit_judge", "large_judge", "constitution", "train_prompts", "heldout_prompts",
    "attacks", "lookalikes",
)  # fmt: skip
SETS = ("attacks", "lookalikes")
"""Prompts for evaluation alone; they need no grown models."""


def nursery_paths(names: Collection[str], *, progress: bool) -> dict[str, str]:
    """Paths by name, without their prefix. Grows what is not in the cache, and describes it."""
    found: dict[str, str] = {}
    if any(name in SETS for name in names):
        folder = cache_folder()
        from nursery.sets.build import sets

        try:
            found = {name: str(path) for name, path in sets(folder).items() if name in names}
        except OSError as error:
            raise unusable(folder, error, "XDG_CACHE_HOME") from error
    if others := [name for name in names if name not in SETS]:
        grown = grown_for(others, progress=progress)
        if progress:
            print("\n".join(describe(grown.report)))
        found |= {name: str(getattr(grown, name)) for name in others}
    return found


def grown_for(names: Collection[str], *, progress: bool) -> Nursery:
    """The nursery with everything that these names (without their prefix) denote.

    Raises InputError for an unusable cache of this account.
    """
    folder = cache_folder()
    from nursery.grow import grow, grow_large_judge

    try:
        grown = grow(progress=progress)
        if "large_judge" in names:
            grow_large_judge(grown, progress=progress)
    except OSError as error:
        raise unusable(folder, error, "XDG_CACHE_HOME") from error
    return grown


def describe(report: dict[str, Any]) -> list[str]:
    """The scores of the models when they were grown: a line for the policy and one for each judge."""
    lines = [f"nursery: before training the policy keeps {report['policy']['mean']:.1%} of the principles that apply"]
    for name, title in (("judge_fp", "judge"), ("judge", "the same judge in int8"), ("audit_judge", "audit judge")):
        found = report[name]["held_out"]
        shares = {
            task: [share for key, share in found.items() if key.startswith(f"{task}/")]
            for task in ("pairwise", "pointwise")
        }
        agreement = ", ".join(f"{sum(s) / len(s):.1%} of {task} questions" for task, s in shares.items())
        lines.append(f"nursery: {title} agrees with the oracles on {agreement}, held out")
    return lines
