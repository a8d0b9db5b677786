"""`nursery:` names in a run file denote files that the nursery grows on this machine, once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from solon.errors import InputError, nearest
from solon.files.marks import NamesFile, NamesModel, mapped, values
from solon.host.user_folders import cache_folder, unusable

if TYPE_CHECKING:
    from cluster.config.run_file import RunFile
    from nursery.grow import Nursery
    from solon.feedback.config import FeedbackConfig

R = TypeVar("R", bound="RunFile")
PREFIX = "nursery:"
NAMES = (
    "policy", "judge", "judge_fp", "audit_judge", "large_judge", "constitution", "train_prompts", "heldout_prompts",
)  # fmt: skip


def uses_nursery(run: RunFile) -> bool:
    """Whether any name must be grown."""
    return any(value.startswith(PREFIX) for value in _names(run))


def with_nursery(run: R, *, progress: bool) -> R:
    """The run file with paths instead of `nursery:` names; grows the models if they are not in the cache."""
    path = resolver(_names(run), progress=progress)
    return mapped(mapped(run, NamesModel, path), NamesFile, path)


def panel_paths(feedback: FeedbackConfig, path: Callable[[str], str]) -> FeedbackConfig:
    """The same settings with the names of additional judges replaced by paths."""
    cascade = feedback.cascade.model_copy(update={"judge": path(feedback.cascade.judge)})
    jury = feedback.jury.model_copy(update={"judges": tuple(map(path, feedback.jury.judges))})
    select = feedback.select.model_copy(update={"proxy": path(feedback.select.proxy)})
    return feedback.model_copy(update={"cascade": cascade, "jury": jury, "select": select})


def resolver(names: Sequence[str], *, progress: bool) -> Callable[[str], str]:
    """A function that replaces `nursery:` names by paths and keeps all other names; grows models only if one is among
    `names`. Raises InputError for a name that the nursery does not have."""
    named = [value.removeprefix(PREFIX) for value in names if value.startswith(PREFIX)]
    if not named:
        return lambda value: value
    grown = grown_for(named, progress=progress)
    if progress:
        print("\n".join(describe(grown.report)))
    return paths_in(grown)


def paths_in(grown: Nursery | None) -> Callable[[str], str]:
    """A function that replaces `nursery:` names by paths of a grown nursery."""
    return lambda value: str(getattr(grown, _checked(value))) if value.startswith(PREFIX) else value


def grown_for(names: Collection[str], *, progress: bool) -> Nursery:
    """The nursery with everything that these names (without their prefix) denote.

    Before growing anything, raises InputError for a name that the nursery does not have and for an unusable cache of
    this account.
    """
    for name in names:
        _checked(PREFIX + name)
    folder = cache_folder()
    from nursery.grow import grow, grow_large_judge

    try:
        grown = grow(progress=progress)
        if "large_judge" in names:
            grow_large_judge(grown, progress=progress)
    except OSError as error:
        raise unusable(folder, error, "XDG_CACHE_HOME") from error
    return grown


def _checked(value: str) -> str:
    name = value.removeprefix(PREFIX)
    if name not in NAMES:
        raise InputError(
            f"got the name `{value}`, expected one of {', '.join(PREFIX + n for n in NAMES)}{nearest(name, NAMES)}"
        )
    return name


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


def _names(run: RunFile) -> tuple[str, ...]:
    return (*values(run, NamesModel), *values(run, NamesFile))
