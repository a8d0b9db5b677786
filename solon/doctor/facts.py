"""The contents of a run's files at one moment. `solon.doctor.diagnosis` interprets them."""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from solon.checkpoints.folder import CheckpointFolder
from solon.doctor.files import (
    CheckpointState,
    free_bytes,
    is_alive,
    is_locked,
    left_over,
    read_checkpoints,
    read_lines,
    read_object,
    time_of,
)
from solon.doctor.status import RunStatus
from solon.errors import InputError
from solon.ledger.conservation import Account, account
from solon.runs.integrity import Integrity, examine, read_records

RUN_FILES = ("config.json", "metrics.jsonl", "events.jsonl", "summary.json", "live.json")
TAIL_BYTES = 2 * 2**20
"""Bytes of the events that are read for recent faults."""
COUNTED_BYTES = 48 * 2**20
"""Larger files are not counted unless requested: it would take seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A snapshot of a run directory."""

    path: Path
    now: float
    host: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    """Of the last process that worked here; None: it has written none."""
    standing: RunStatus | None
    is_locked: bool | None
    """Whether a process locks the directory; None: the file system does not say."""
    pid_lives: bool | None
    """Whether the process of `live.json` exists; None: not known, or on another machine."""
    events: tuple[Mapping[str, Any], ...]
    """The most recent ones."""
    last_step: Mapping[str, Any] | None
    """The last line of `metrics.jsonl`."""
    account: Account | None
    checkpoints: tuple[CheckpointState, ...]
    """In the order in which `--resume` tries them."""
    records: Integrity
    """How the append-only files compare with the last whole checkpoint's record of them."""
    left_over: tuple[str, ...]
    torn: tuple[str, ...]
    """Files whose last line is incomplete."""
    problems: tuple[str, ...]
    """Files that could not be read, and omissions."""
    free_bytes: int
    has_ballast: bool

    @property
    def started(self) -> float:
        """When the last process began; 0: not known."""
        return time_of(self.config, "started")

    @property
    def whole(self) -> CheckpointState | None:
        """The checkpoint from which `--resume` continues."""
        return next((checkpoint for checkpoint in self.checkpoints if not checkpoint.problem), None)

    @property
    def last_sign(self) -> float:
        """When the run last wrote a timestamp; 0: never."""
        lines = [*self.events[-1:], *([self.last_step] if self.last_step else [])]
        return max([*map(time_of, lines), self.standing.time if self.standing else 0.0, self.started])

    @property
    def steps_done(self) -> int:
        """Steps up to the last line of the metrics."""
        step = (self.last_step or {}).get("step")
        return step + 1 if isinstance(step, int) else 0


def look(path: Path, *, thorough: bool = False, now: float | None = None) -> Facts:
    """Read a run directory. Raises InputError for any other folder. thorough: read files of any size."""
    _refuse_others(path)
    problems: list[str] = []
    config = read_object(path / "config.json", problems)
    summary = read_object(path / "summary.json", problems)
    standing = _standing(path, problems)
    events = read_lines(path / "events.jsonl", last_bytes=TAIL_BYTES)
    last_step = read_lines(path / "metrics.jsonl", last_bytes=TAIL_BYTES // 4)
    for name, lines in (("events.jsonl", events), ("metrics.jsonl", last_step)):
        if lines.unreadable:
            problems.append(f"{name} has {lines.unreadable} lines that are no JSON")
    checkpoints = read_checkpoints(CheckpointFolder(path / "checkpoints"), thorough=thorough)
    records = _integrity(path, checkpoints, thorough=thorough)
    locked = is_locked(path)
    started = time_of(config or {}, "started")
    if summary is not None and (locked or not _is_of_the_end(summary, started, events.last_time)):
        summary = None
    if standing is not None and standing.time < started:
        standing = None  # written by an earlier process
    if config is None and not any("config.json" in problem for problem in problems):
        problems.append("config.json is not there")
    return Facts(
        path=path,
        now=time.time() if now is None else now,
        host=socket.gethostname(),
        config=config or {},
        summary=summary,
        standing=standing,
        is_locked=locked,
        pid_lives=is_alive(standing.pid) if standing and standing.host == socket.gethostname() else None,
        events=events.records,
        last_step=last_step.records[-1] if last_step.records else None,
        account=_account(path, summary, checkpoints, records, problems, thorough=thorough),
        checkpoints=tuple(checkpoints),
        records=records,
        left_over=tuple(left_over(path)),
        torn=tuple(n for n, lines in (("events.jsonl", events), ("metrics.jsonl", last_step)) if lines.is_torn),
        problems=tuple(problems),
        free_bytes=free_bytes(path),
        has_ballast=(path / ".ballast").exists(),
    )


def _refuse_others(path: Path) -> None:
    if not path.is_dir():
        what = "is no directory" if path.exists() else "does not exist"
        root = os.environ.get("SOLON_RUNS", "runs")
        raise InputError(
            f"{path} {what}, expected a run directory or the name of one under {root}; look with "
            f"`ls {shlex.quote(root)}`"
        )
    if (path / "preferences.jsonl").exists():
        raise InputError(
            f"{path} is a labelled data set, expected a run directory; the same `solon label` command continues it"
        )
    if not any((path / name).exists() for name in RUN_FILES):
        raise InputError(f"{path} has none of {', '.join(RUN_FILES)}, expected a directory that `solon train` writes")


def _standing(path: Path, problems: list[str]) -> RunStatus | None:
    raw = read_object(path / "live.json", problems)
    try:
        return None if raw is None else RunStatus.model_validate(raw)
    except ValidationError as error:
        problems.append(f"live.json is not what a run writes: {error.errors()[0]['msg']}")
        return None


def _integrity(path: Path, checkpoints: Sequence[CheckpointState], *, thorough: bool) -> Integrity:
    whole = next((c for c in checkpoints if not c.problem), None)
    return examine(path, read_records(path / "checkpoints" / whole.name) if whole else None, thorough=thorough)


def _account(
    path: Path,
    summary: Mapping[str, Any] | None,
    checkpoints: Sequence[CheckpointState],
    records: Integrity,
    problems: list[str],
    *,
    thorough: bool,
) -> Account | None:
    """None: it was not made, and `problems` says why."""
    files = [path / "events.jsonl", path / "metrics.jsonl"]
    size = sum(file.stat().st_size for file in files if file.exists())
    if size > COUNTED_BYTES and not thorough:
        problems.append(f"the groups were not counted, their files have {size >> 20} MiB: `--thorough` counts them")
        return None
    events = read_lines(files[0], only=('"group_dropped"', '"resumed"'))
    metrics = read_lines(files[1])
    admitted, held = _end_of(summary, checkpoints)
    vouched: set[int] = set()
    if not records.has_account:
        # Groups after the checkpoint are uncertain: none counts as lost.
        held = None
        whole = next((c.cut for c in checkpoints if c.cut is not None), None)
        vouched = set() if whole is None else set(range(whole.admitted)) - {entry.ordinal for entry in whole.entries}
    try:
        return account(
            (e for e in events.records if e.get("event") in ("group_dropped", "resumed")),
            metrics.records,
            admitted=admitted,
            held=held,
            vouched=vouched,
        )
    except (KeyError, TypeError, ValueError) as error:
        problems.append(f"the groups cannot be counted: a line is not what a run writes ({error!r})")
        return None


def _end_of(
    summary: Mapping[str, Any] | None, checkpoints: Sequence[CheckpointState]
) -> tuple[int | None, list[int] | None]:
    """How many groups were admitted and which are held, as far as the end of the run states it."""
    groups = (summary or {}).get("groups")
    if summary is None or not isinstance(groups, Mapping) or not isinstance(groups.get("admitted"), int):
        return None, None
    if summary.get("status") == "completed":
        return groups["admitted"], []
    whole = next((c.cut for c in checkpoints if c.cut is not None), None)
    # A stopped run writes its last checkpoint when nothing moves.
    if summary.get("status") == "stopped" and whole is not None and whole.admitted == groups["admitted"]:
        return whole.admitted, [entry.ordinal for entry in whole.entries]
    return groups["admitted"], None


def _is_of_the_end(summary: Mapping[str, Any], started: float, last_event: float) -> bool:
    """Whether a summary belongs to the last process that worked here, and not to an earlier one."""
    try:
        finished = datetime.strptime(str(summary.get("finished")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return True
    return max(started, last_event) < finished + 2  # whole seconds, plus a margin between two clocks
