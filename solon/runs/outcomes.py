"""The outcome of every rollout: reward, advantage and step are filled into the parts with its rows.

    generated ──▶ part with empty `reward`, `advantage`, `step`     at once: a run that dies has lost nothing
    labelled, trained, dropped ──▶ the same part with them filled in, by rename

A part is written again once the outcomes of all its groups are final; known outcomes also go into all parts before a
checkpoint and at the end. So a part never gains, loses or moves a row, and is written only a few times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.records import TrainedGroup
from solon.runs.directory import RunDirectory

Key = tuple[int, int]
"""(ordinal, attempt)."""
Row = dict[str, Any]
COLUMNS = ("reward", "advantage", "step")
LOOK_BACK = 1000
"""Parts of an earlier process that are searched for a group that it generated and this process trains."""


@dataclass(slots=True)
class _Outcome:
    """Of one attempt at a group; None: not known yet, or never."""

    rewards_G: tuple[float | None, ...]
    advantages_G: tuple[float | None, ...] = ()
    step: int | None = None

    def of(self, index: int) -> Row:
        """The columns of one rollout."""
        advantage = self.advantages_G[index] if self.advantages_G else None
        return {"reward": self.rewards_G[index], "advantage": advantage, "step": self.step}


class Outcomes:
    """`rows = outcomes.complete(rows)`, write them, `outcomes.written(path, rows)`, then `outcomes.fill()`.

    Not thread-safe. When `fill` is called, every generated row must be written.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._news: dict[Key, _Outcome] = {}
        """Outcomes that are not filled in yet."""
        self._open: dict[Path, set[int]] = {}
        """Unfinished parts, with the ordinals in them that may still be trained."""
        self._part: dict[Key, Path] = {}
        """The unfinished part of each group."""
        self._settled: set[int] = set()
        """Ordinals settled since the last `fill`: their rows may not be written yet."""

    def labelled(self, key: Key, rewards_G: tuple[float | None, ...]) -> None:
        """The group was labelled."""
        self._news[key] = _Outcome(rewards_G)

    def trained(self, step: int, groups: Iterable[TrainedGroup]) -> None:
        """These groups were in the batch of a committed step."""
        for group in groups:
            self._news[group.ordinal, group.attempt] = _Outcome(group.rewards_G, group.advantages_G, step)

    def settle(self, ordinals: Iterable[int]) -> None:
        """These groups were trained or dropped: their outcome is final."""
        self._settled |= set(ordinals)

    def complete(self, rows: Sequence[Row]) -> list[Row]:
        """Rows to write, with their known outcomes."""
        empty: Row = dict.fromkeys(COLUMNS)
        found = []
        for row in rows:
            outcome = self._news.get((row["ordinal"], row["attempt"]))
            found.append(row | (empty if outcome is None else outcome.of(row["index"])))
        return found

    def written(self, path: Path, rows: Sequence[Row]) -> None:
        """These rows, as `complete` returned them, were written as this part."""
        keys = {(row["ordinal"], row["attempt"]) for row in rows}
        for key in keys:
            self._news.pop(key, None)
        self._part |= dict.fromkeys(keys, path)
        self._open[path] = {ordinal for ordinal, _ in keys}

    def fill(self, *, everything: bool = False) -> list[str]:
        """Write parts with new outcomes again: those whose groups are all final, or all of them.

        Returns messages about unreadable parts. Raises what `RunDirectory.replace_rows` raises.
        """
        for waiting in self._open.values():
            waiting -= self._settled
        self._settled.clear()
        places = self._located(self._news)
        for key in self._news.keys() - places.keys():
            del self._news[key]  # its rows were lost with their machine
        problems = []
        for path in sorted({*places.values()}):
            if everything or not self._open.get(path):
                outcomes = {key: self._news.pop(key) for key, place in places.items() if place == path}
                problems += self._fill_part(path, outcomes)
        closed = {path for path, waiting in self._open.items() if not waiting}
        for path in closed:
            del self._open[path]
        self._part = {key: path for key, path in self._part.items() if path not in closed}
        return problems

    def _located(self, keys: Iterable[Key]) -> dict[Key, Path]:
        """The part of each group; groups of an earlier process are searched in the files, youngest first."""
        wanted = set(keys)
        found = {key: self._part[key] for key in wanted & self._part.keys()}
        wanted -= found.keys()
        if wanted:
            parts = sorted(set((self._directory.path / "rollouts").glob("part-*.parquet")) - self._open.keys())
            for path in reversed(parts[-LOOK_BACK:]):
                here = wanted & _keys_of(path)
                found |= dict.fromkeys(here, path)
                wanted -= here
                if not wanted:
                    break
        return found

    def _fill_part(self, path: Path, outcomes: Mapping[Key, _Outcome]) -> list[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            return [f"{path.name} cannot be read: {error}"]
        if not set(COLUMNS) <= set(table.column_names):
            return []  # written by a version without these columns
        places = zip(*(table[name].to_pylist() for name in ("ordinal", "attempt", "index")), strict=True)
        rows = [outcome.of(index) if (outcome := outcomes.get((o, a))) else {} for o, a, index in places]
        for name in COLUMNS:
            olds = table[name].to_pylist()
            values = [old if row.get(name) is None else row[name] for old, row in zip(olds, rows, strict=True)]
            field = table.field(name)
            table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
        self._directory.replace_rows(path, table)
        return []


def _keys_of(path: Path) -> set[Key]:
    """The groups in a part; none where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["ordinal", "attempt"])
    except (OSError, pa.ArrowException):
        return set()
    return set(zip(table["ordinal"].to_pylist(), table["attempt"].to_pylist(), strict=True))
