"""`nursery:` names in a run file stand for files that the nursery grows on this machine, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solon.errors import InputError, nearest

if TYPE_CHECKING:
    from cluster.run_file import RunFile

PREFIX = "nursery:"
NAMES = ("policy", "judge", "judge_fp", "audit_judge", "constitution", "train_prompts", "heldout_prompts")


def uses_nursery(run: RunFile) -> bool:
    """Whether any name has to be grown."""
    return any(value.startswith(PREFIX) for value in _names(run))


def with_nursery(run: RunFile, *, progress: bool) -> RunFile:
    """The run file with paths instead of `nursery:` names; grows the models if they are not in the cache."""
    for value in _names(run):
        name = value.removeprefix(PREFIX)
        if value.startswith(PREFIX) and name not in NAMES:
            raise InputError(
                f"run file names `{value}`, expected one of "
                f"{', '.join(PREFIX + n for n in NAMES)}{nearest(name, NAMES)}"
            )
    from nursery.grow import grow

    grown = grow(progress=progress)

    def path(value: str) -> str:
        return str(getattr(grown, value.removeprefix(PREFIX))) if value.startswith(PREFIX) else value

    evaluate = run.evaluate.model_copy(
        update={"prompts": path(run.evaluate.prompts), "audit_judge": path(run.evaluate.audit_judge)}
    )
    top = {key: path(getattr(run, key)) for key in ("policy", "judge", "prompts", "constitution")}
    return run.model_copy(update={**top, "evaluate": evaluate})


def _names(run: RunFile) -> tuple[str, ...]:
    return (
        run.policy,
        run.judge,
        run.prompts,
        run.constitution,
        run.evaluate.prompts,
        run.evaluate.audit_judge,
    )
