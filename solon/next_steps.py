"""What to do about a run that stands as it does: the exact command where there is one. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solon.run_facts import Facts

UP = ("starting", "running", "finishing", "stalled")
"""Statuses of a run that has a process."""
LITTLE_ROOM_BYTES = 2**30


def next_steps(facts: Facts, status: str, *, is_balanced: bool) -> list[str]:
    """What somebody does now, the first thing first."""
    resume = resume_command(facts.path, facts.config)
    room = ["free some space on the disk first"] if facts.free_bytes < LITTLE_ROOM_BYTES // 10 else []
    if not is_balanced:
        return [
            "keep this directory as it is, and report it: no run may end like this",
            "then train from the start under another --name: what this one trained on is not certain",
        ]
    if status == "completed":
        best = next((c.name for c in facts.checkpoints if not c.problem), None)
        return [f"nothing; the aligned model is {facts.path / 'checkpoints' / best / 'policy'}" if best else "nothing"]
    if status in ("starting", "running", "finishing"):
        end = f"; to end it early and lose nothing: kill -TERM {facts.standing.pid}" if facts.standing else ""
        return [f"nothing, look again later{end if status == 'running' else ''}"]
    if status == "stalled":
        pid = facts.standing.pid if facts.standing else "PID"
        return [
            "look who waits for whom above, and at that worker's log in the Ray dashboard",
            f"end it: kill -TERM {pid}, and if it is still there after a minute, kill -KILL {pid}",
            *room,
            resume,
        ]
    if status == "failed":
        return ["mend what it failed of, if it is not mended yet", *room, resume]
    if status == "dead":
        where = facts.standing.host if facts.standing else "its machine"
        return [*room, resume, f"to learn why it died: dmesg -T | grep -iE 'out of memory|killed process' on {where}"]
    return [*room, resume]


def resume_command(path: Path, config: Mapping[str, Any]) -> str:
    """What a person types to go on, wherever they are."""
    origin = config.get("origin")
    origin = origin if isinstance(origin, Mapping) else {}
    command = origin.get("command")
    words = [str(word) for word in command] if isinstance(command, list) and command else ["solon", "train", "RUN.toml"]
    line = shlex.join([*words, "--name", path.name, "--resume"])
    folder, is_job = str(origin.get("folder") or ""), bool(origin.get("is_job"))
    if path.resolve().parent != Path(folder or ".").resolve() / "runs":
        line = f"{'env ' if is_job else ''}SOLON_RUNS={shlex.quote(str(path.resolve().parent))} {line}"
    if is_job:  # its folder was a copy that went with it
        return f"ray job submit --working-dir . -- {line}"
    return f"cd {shlex.quote(folder)} && {line}" if folder and Path(folder) != Path.cwd() else line
