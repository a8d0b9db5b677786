"""How to resume a run: the exact command. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any


def trained_nothing(summary: Mapping[str, Any]) -> bool:
    """Whether no step of the run moved the policy."""
    return bool(summary.get("steps")) and summary.get("steps_moved") == 0


def resume_command(path: Path, config: Mapping[str, Any], *, back_to: str = "", settings: Sequence[str] = ()) -> str:
    """The command that resumes the run, from any folder. back_to: for `--from`. settings: for `--set`."""
    origin = config.get("origin")
    origin = origin if isinstance(origin, Mapping) else {}
    if (job := origin.get("submission")) and not back_to and not settings:
        return f"solon jobs resume {shlex.quote(str(job))}"
    command = origin.get("command")
    words = [str(word) for word in command] if isinstance(command, list) and command else ["solon", "train", "RUN.toml"]
    words = _without(words, {setting.partition("=")[0] for setting in settings})
    back = ["--from", back_to] if back_to else []
    sets = [word for setting in settings for word in ("--set", setting)]
    line = shlex.join([*words, "--name", path.name, "--resume", *back, *sets])
    folder, is_job = str(origin.get("folder") or ""), bool(origin.get("is_job"))
    if path.resolve().parent != Path(folder or ".").resolve() / "runs":
        line = f"{'env ' if is_job else ''}SOLON_RUNS={shlex.quote(str(path.resolve().parent))} {line}"
    if is_job:  # its working folder was a copy, which is gone
        return f"ray job submit --working-dir . -- {line}"
    return f"cd {shlex.quote(folder)} && {line}" if folder and Path(folder) != Path.cwd() else line


def _without(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """The command without its `--set` of these keys, to avoid setting them twice."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--set" and word.partition("=")[0] in keys:
            found.pop()
        else:
            found.append(word)
    return found
