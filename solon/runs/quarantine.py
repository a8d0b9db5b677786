"""Refused input and the reasons: `quarantine.jsonl` in the directory of a run or of labels.

    {"time": …, "stage": "prompts", "line": 17, "reason": "not UTF-8", "count": 1, "excerpt": "…"}

A broken disk or judge refuses millions of rows, all for one reason: the first rows of each reason are kept, and `count`
is the number up to that row. When the directory is closed the last row of a reason has its exact count.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from solon.files.plain_text import excerpt as short_excerpt
from solon.runs.directory import RunDirectory

NAME = "quarantine.jsonl"
ROWS_PER_REASON = 100
"""Rows kept of one reason; further ones are counted, and those with a round number, 1000, 2000, 10000, are kept."""
MOST_REASONS = 200
"""Distinct reasons in one stage; later ones are `other`."""
OTHER = "other"

Kind = tuple[str, str]
"""(stage, reason without its variable parts)."""


class Quarantine:
    """`Quarantine(directory).add(stage="labels", reason="margin is NaN", ordinal=12, excerpt=answer)`

    May be called from any thread. A reopened directory continues with the counts in its file, except for the
    stages in `reread`: those read their input from the beginning, so their rows are written again.
    """

    def __init__(self, directory: RunDirectory, *, reread: Collection[str] = ()) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._counts: Counter[Kind] = Counter()
        self._reasons: dict[Kind, str] = {}
        """The reason in the words of its first row."""
        self._written: Counter[Kind] = Counter()
        """The count in the last row that was written."""
        self._continue(directory.path / NAME, reread)

    def add(
        self,
        *,
        stage: str,
        reason: str,
        ordinal: int | None = None,
        line: int | None = None,
        file: str = "",
        excerpt: str = "",
    ) -> None:
        """Add one refused item. ordinal: dispatch number of a group; line: line or row of a file; file: its name, where
        there are several; excerpt: the item, any text of any length."""
        reason = short_excerpt(reason)
        with self._lock:
            kind = self._kind(stage, reason)
            self._counts[kind] += 1
            self._reasons.setdefault(kind, reason)
            if _is_kept(self._counts[kind]):
                self._write(kind, reason, ordinal=ordinal, line=line, file=file or None, excerpt=short_excerpt(excerpt))

    @property
    def total(self) -> int:
        """The number of refused items, including those of earlier starts."""
        with self._lock:
            return self._counts.total()

    def summary(self) -> dict[str, Any]:
        """For `summary.json`: the exact counts, the most frequent reason first."""
        with self._lock:
            reasons: dict[str, dict[str, int]] = {}
            for (stage, reason), count in self._counts.most_common():
                reasons.setdefault(stage, {})[self._reasons[stage, reason]] = count
            return {"total": self._counts.total(), "by_stage": reasons}

    def close(self) -> None:
        """Writes the last count of every reason that has more rows than were kept."""
        with self._lock:
            for kind, count in self._counts.items():
                if self._written[kind] != count:
                    self._write(kind, self._reasons[kind])

    def _kind(self, stage: str, reason: str) -> Kind:
        kind = stage, _without_particulars(reason)
        if kind not in self._counts and sum(known == stage for known, _ in self._counts) >= MOST_REASONS:
            return stage, OTHER
        return kind

    def _write(self, kind: Kind, reason: str, **what: Any) -> None:
        given = {key: value for key, value in what.items() if value is not None}
        row = {"time": time.time(), "stage": kind[0], **given, "reason": reason, "count": self._counts[kind]}
        self._directory.append(NAME, row)
        self._written[kind] = self._counts[kind]

    def _continue(self, path: Path, reread: Collection[str]) -> None:
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            row = _row(line)
            if row is None or row["stage"] in reread:
                continue
            kept.append(line)
            kind = self._kind(row["stage"], row["reason"])
            self._counts[kind] = self._written[kind] = max(self._counts[kind], row["count"])
            self._reasons.setdefault(kind, row["reason"])
        self._directory.write_text(NAME, "".join(f"{line}\n" for line in kept))


def _row(line: str) -> dict[str, Any] | None:
    """A row of the file; None for a line that Solon did not write."""
    try:
        row = json.loads(line)
        is_ours = isinstance(row["stage"], str) and isinstance(row["reason"], str) and type(row["count"]) is int
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return row if is_ours else None


def _is_kept(count: int) -> bool:
    return count <= ROWS_PER_REASON or (count % 1000 == 0 and set(str(count)[1:]) == {"0"})


def _without_particulars(reason: str) -> str:
    """Reasons that differ only in numbers and quoted values are one reason.

    >>> _without_particulars("`prompt` has the role 'tool', 3 of 4")
    '`prompt` has the role …, … of …'
    """
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+(\.\d+)?", "…", reason)
