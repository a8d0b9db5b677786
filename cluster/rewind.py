"""Resuming from an earlier checkpoint than the last one: `--resume --from best|STEP`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config.input_digests import Digests
from solon.checkpoints.folder import Checkpoint, CheckpointFolder, read_checkpoint
from solon.errors import InputError
from solon.feedback.watching.best import ranked
from solon.feedback.watching.drift import Window
from solon.feedback.watching.remedies import SPOILING
from solon.feedback.watching.watch_state import WatchState

BEST = "best"
ALSO_MAY_CHANGE = (
    "judge",
    "judging",
    "feedback",
    "watch",
    *(f"learn.{key}" for key in ("kl_coefficient", "kl_estimator", "learning_rate", "critic_learning_rate")),
    "learn.entropy_bonus",
)
"""Keys that a run may change when it goes back: they say how the policy is rewarded and trained from there on."""
GOLD = ("watch.audit_judge",)
"""The gold audit must not change: it compares the run before and after it went back."""
REWARDING = ("judge", "judging", "feedback")
"""When one of these changes, the groups in the checkpoint are judged again."""


def may_change(key: str) -> bool:
    """Whether a run that goes back may change this key."""
    return _within(key, ALSO_MAY_CHANGE) and not _within(key, GOLD)


def other_judge(changed: Mapping[str, Any]) -> bool:
    """Whether the answers are rewarded differently than before."""
    return any(_within(key, REWARDING) for key in changed)


def inputs_to_share(digests: Digests) -> Digests:
    """Digests that must not change when a run goes back: all but the judges'."""
    return {
        key: digest
        for key, digest in digests.items()
        if key not in ("judge", "judging.chat_template") and not key.startswith("feedback judge")
    }


def judges_changed(now: Digests, then: Mapping[str, object]) -> dict[str, list[Any]]:
    """Judges that have other weights under the same name, in the form of configuration changes."""
    keys = now.keys() - inputs_to_share(now).keys()
    return {
        f"{'judging' if key == 'judging.chat_template' else 'judge'} ({key})": [then[key], now[key]]
        for key in sorted(keys)
        if isinstance(then.get(key), str) and then[key] != now[key]
    }


def refuse_spoilt(checkpoint: Checkpoint, directory: Path, best: str) -> None:
    """Raises InputError when an alarm stopped the run at this checkpoint: a plain resume would continue with the very
    policy that raised it."""
    alarm = checkpoint.run.get("stopped_by")
    if not isinstance(alarm, Mapping) or alarm.get("kind") not in SPOILING:
        return
    back = (
        f"--from best goes back to {best}"
        if best
        else "no earlier checkpoint has the best audit score: start a new run"
    )
    raise InputError(
        f"--resume: an alarm stopped {directory} at step {checkpoint.step}, {alarm['kind']}: "
        f"{alarm.get('message')}. {back}; --from {checkpoint.step} resumes where it stopped"
    )


def chosen(folder: CheckpointFolder, wanted: str) -> Checkpoint:
    """The checkpoint that `--from` names. Raises InputError that lists the available ones."""
    if wanted == BEST:
        return _best(folder)
    steps = folder.steps()
    if not wanted.isdecimal() or int(wanted) not in steps:
        got = f"step {wanted}" if wanted.isdecimal() else repr(wanted)
        raise InputError(
            f"--from got {got}, expected `best` or the step of a checkpoint in {folder.path}: {_list(steps)}"
        )
    return read_checkpoint(folder.path / folder.name(int(wanted)))


def best_of(folder: CheckpointFolder, windows: Sequence[Window], alarm: object) -> str:
    """Name of the checkpoint that gold liked best; empty: not known for any. alarm: the one that stopped the run."""
    found = ranked(_sound(folder.steps(), alarm), windows)
    return folder.name(found[0]) if found else ""


def _sound(steps: Sequence[int], alarm: object) -> list[int]:
    """Steps before those that an alarm covers: gold may like the answers of a policy that has collapsed."""
    until = alarm.get("sound_until") if isinstance(alarm, Mapping) else None
    return [step for step in steps if not isinstance(until, int) or step <= until]


def windows_of(checkpoint: Checkpoint) -> list[Window]:
    """The audit results in this checkpoint; empty: the run was not audited."""
    state = checkpoint.run.get("watch")
    if state is None:
        return []
    found = WatchState.from_json(state)
    return [*found.past, *found.windows]


def _best(folder: CheckpointFolder) -> Checkpoint:
    last = folder.last()
    windows = windows_of(last) if last is not None else []
    if not windows:
        raise InputError(
            f"--from best: {folder.path} has no audits to choose by, expected finished windows of [watch]; name the "
            f"step of a checkpoint: {_list(folder.steps())}"
        )
    problems = []
    assert last is not None
    alarm = last.run.get("stopped_by")
    for step in ranked(_sound(folder.steps(), alarm), windows):
        try:
            return read_checkpoint(folder.path / folder.name(step))
        except InputError as error:
            problems.append(str(error))
    problem = f"is whole: {problems[0]}" if problems else "is from before the alarm that stopped the run"
    raise InputError(
        f"--from best: no checkpoint in {folder.path} {problem}; there are those of steps {_list(folder.steps())}"
    )


def _list(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "there is none"


def _within(key: str, sections: Sequence[str]) -> bool:
    name = key.partition(" ")[0]
    return any(name == section or name.startswith(f"{section}.") for section in sections)
