"""The files of a run as tables, read while it runs: labels, rollouts, metrics, events, held-out answers.

    store = RunStore(Path("runs/mine"))
    store.refresh()
    store.rows("SELECT principle_id, avg(margin) FROM labels GROUP BY ALL")

DuckDB reads the Parquet parts. Parts that cannot be read are left out and named in `problems`. Nothing is written.

| table | a row is |
|---|---|
| `labels`, `rollouts` | as in docs/data.md, without token ids and log-probs; `tokens` counts them |
| `metrics` | `step`, `time`, `name`, `value`: the last line of each step |
| `events` | `time`, `event`, `severity`, `fields` (JSON) |
| `heldout` | `moment` (before, after), `prompt_id`, `prompt`, `tags`, `answer`, `score`, `scores` (JSON) |
| `audits` | `ordinal`, `attempt`, `index`, `reward`, `gold`, and by principle (JSON) `margins`, `gold_margins` |
| `groups` | a group that was trained or dropped: `groups.jsonl` |
| `human` | a person's labels, `human-labels.jsonl` |
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from solon.errors import InputError, one_line
from solon.events import EVENTS
from solon.files.json_text import json_text
from solon.files.regular import require_regular
from solon.report.values import clean, is_whole, number, numbers, sane
from solon.runs.tables import TYPES, arrow_schema

MEMORY = "2GB"
"""Most memory of the tables."""
LABEL_COLUMNS = (
    "label_id", "created_ns", "ordinal", "attempt", "task", "principle_id", "question_id", "rollouts", "status",
    "valid", "margin", "raw_margin", "consistent", "position_offset", "mass", "reward", "prompt_tokens",
    "cached_tokens", "output_tokens", "questions", "cache_hits", "judge", "source", "usd", "detail", "run_id",
    "judge_id", "model",
)  # fmt: skip
ROLLOUT_COLUMNS = (
    "ordinal", "attempt", "index", "prompt_id", "prompt", "tags", "text", "thought", "is_cut", "versions",
    "finish_reason", "created_ns", "reward", "advantage", "step",
)  # fmt: skip
GROUP_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("ordinal", "attempt", "step", "staleness", "version", "tokens", "labels", "invalid"), "BIGINT"),
    **dict.fromkeys(("time", "admitted", "granted", "generated", "taken", "labelled", "reward"), "DOUBLE"),
    **dict.fromkeys(("outcome", "reason", "engine", "judge"), "VARCHAR"),
}
"""Type by column of `groups`."""
HUMAN = "human-labels.jsonl"
HELDOUT = {"before": "heldout-before.json", "after": "heldout-after.json"}


class RunStore:
    """Tables of one run directory. Safe to use from several threads. Raises InputError when it is no directory."""

    def __init__(self, path: Path) -> None:
        import duckdb

        if not path.is_dir():
            raise InputError(f"{path} is no directory, expected a run directory; look with `ls runs`")
        self.path = path
        self.problems: dict[str, str] = {}
        """Files that could not be read, and why."""
        self._lock = threading.Lock()
        self._parts: dict[str, tuple[int, int]] = {}
        """Size and time of change of every part that was read."""
        self._read: dict[str, int] = {}
        """Bytes of every `.jsonl` file that were read."""
        self.loaded = threading.Event()
        """Set when all rows that existed at the first refresh are read."""
        self._db = duckdb.connect(config={"memory_limit": MEMORY, "threads": 2, "python_enable_replacements": False})
        self._create()
        # People's queries run in this database: it can read this run and nothing else, and write nothing.
        self._db.execute("SET temp_directory = ''")
        self._db.execute("SET allowed_directories = [$1]".replace("$1", _quoted(f"{path.absolute()}/")))
        self._db.execute("SET enable_external_access = false")
        self._db.execute("SET lock_configuration = true")

    def refresh(self) -> None:
        """Read what is new since the last call."""
        self.refresh_small()
        for name, columns in (("labels", LABEL_COLUMNS), ("rollouts", ROLLOUT_COLUMNS)):
            with self._lock:
                self._refresh_parts(name, columns)
        self.loaded.set()

    def refresh_small(self) -> None:
        """The same without labels and rollouts, which may take seconds. What cannot be read is named in `problems`."""
        files: dict[str, tuple[str, Callable[[Sequence[Mapping[str, Any]]], None]]] = {
            "metrics.jsonl": ("metrics", self._add_metrics),
            "events.jsonl": ("events", self._add_events),
            "audits.jsonl": ("audits", self._add_audits),
            "groups.jsonl": ("groups", self._add_groups),
            HUMAN: ("human", self._add_human),
        }
        with self._lock:
            for name, (table, add) in files.items():
                with self._noted(name):
                    lines, from_start = self._new_lines(name)
                    if from_start:
                        self._db.execute(f"DELETE FROM {table}")
                    add(lines)
            for moment, file in HELDOUT.items():
                with self._noted(file):
                    self._refresh_heldout(moment, file)

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """A file that cannot be read is named, and the others are read."""
        try:
            yield
        except Exception as error:  # whatever a foreign file does
            self.problems[name] = one_line(f"{type(error).__name__}: {error}")

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """A connection of its own to the tables, for one thread."""
        cursor = self._db.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a query of our own."""
        with self.cursor() as cursor:
            found = cursor.execute(query, list(parameters))
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def value(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        """The one value of a query; None where there is no row."""
        found = self.rows(query, parameters)
        return next(iter(found[0].values())) if found else None

    def object(self, name: str) -> dict[str, Any]:
        """A JSON file of the run with values that can be shown (`sane`); empty where there is none or it is damaged."""
        try:
            require_regular(self.path / name)
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.problems[name] = one_line(str(error))
            return {}
        if not isinstance(found, dict):
            self.problems[name] = "is no JSON object"
            return {}
        shown: dict[str, Any] = sane(found)
        return shown

    def close(self) -> None:
        """Free the tables."""
        with self._lock:
            self._db.close()

    def _create(self) -> None:
        self._db.execute("CREATE TABLE metrics (step BIGINT, time DOUBLE, name VARCHAR, value DOUBLE)")
        self._db.execute("CREATE TABLE events (time DOUBLE, event VARCHAR, severity VARCHAR, fields VARCHAR)")
        self._db.execute(
            "CREATE TABLE heldout (moment VARCHAR, prompt_id VARCHAR, prompt VARCHAR, tags VARCHAR[], answer VARCHAR, "
            "score DOUBLE, scores VARCHAR, labels VARCHAR)"
        )
        self._db.execute(
            'CREATE TABLE audits (ordinal BIGINT, attempt BIGINT, "index" BIGINT, reward DOUBLE, gold DOUBLE, '
            "margins VARCHAR, gold_margins VARCHAR)"
        )
        self._db.execute(
            "CREATE TABLE human (label_id VARCHAR, parent_label_id VARCHAR, verdict VARCHAR, reason VARCHAR, "
            "who VARCHAR, created_ns BIGINT, row VARCHAR)"
        )
        self._db.execute(f"CREATE TABLE groups ({', '.join(f'{name} {kind}' for name, kind in GROUP_COLUMNS.items())})")
        for name, columns in (("labels", LABEL_COLUMNS), ("rollouts", ROLLOUT_COLUMNS)):
            self._db.register("empty", arrow_schema(name, [*TYPES[name], *columns]).empty_table())
            self._db.execute(f"CREATE TABLE {name} AS SELECT {_chosen(name, columns)}, '' AS part FROM empty LIMIT 0")
            self._db.unregister("empty")

    def _refresh_parts(self, name: str, columns: Sequence[str]) -> None:
        """Parts that are new or changed; rows of parts that were removed go."""
        there: dict[str, tuple[int, int]] = {}
        for path in sorted((self.path / name).glob("part-*.parquet")):
            with suppress(OSError):
                require_regular(path)
                stat = path.stat()
                there[str(path)] = (stat.st_size, stat.st_mtime_ns)
        mine = {path for path in self._parts if Path(path).parent.name == name}
        new = [path for path, state in there.items() if self._parts.get(path) != state]
        gone = mine - there.keys()
        if changed := [Path(path).name for path in (*gone, *new) if path in mine]:
            self._db.execute(f"DELETE FROM {name} WHERE list_contains(?, part)", [changed])
        for part in gone:
            del self._parts[part]
            self.problems.pop(f"{name}/{Path(part).name}", None)
        self._parts |= {path: there[path] for path in new}
        for start in range(0, len(new), 256):
            self._insert(name, columns, [Path(path) for path in new[start : start + 256]])

    def _insert(self, name: str, columns: Sequence[str], paths: Sequence[Path]) -> None:
        """All parts at once; where that fails one after the other, so that only the damaged ones are missing."""
        import duckdb

        query = (
            f"INSERT INTO {name} SELECT {_chosen(name, columns)}, parse_filename(filename) "
            "FROM read_parquet(?, filename=true, union_by_name=true)"
        )
        try:
            self._db.execute(query, [[str(path) for path in paths]])
        except duckdb.Error as error:
            if len(paths) == 1:
                self.problems[f"{name}/{paths[0].name}"] = one_line(str(error))
                return
            for path in paths:
                self._insert(name, columns, [path])
        else:
            for path in paths:
                self.problems.pop(f"{name}/{path.name}", None)

    def _new_lines(self, name: str) -> tuple[list[dict[str, Any]], bool]:
        """Whole lines since the last call, and whether they are those of the whole file: it was cut, or is another one.
        An unfinished last line is left for the next call."""
        path = self.path / name
        if not path.exists():
            return [], self._read.pop(name, 0) > 0
        require_regular(path)
        read = self._read.get(name, 0)
        with path.open("rb") as file:
            from_start = file.seek(0, 2) < read
            file.seek(0 if from_start else read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read[name] = (0 if from_start else read) + len(whole)
        found, bad = [], 0
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                found.append(sane(record))
            else:
                bad += 1
        if bad:
            self.problems[name] = f"{bad} lines are no JSON objects"
        return found, from_start

    def _add_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        by_step = {line["step"]: line for line in lines if is_whole(line.get("step"))}
        if not by_step:
            return
        self._db.execute("DELETE FROM metrics WHERE list_contains(?, step)", [list(by_step)])
        self._add(
            "metrics",
            [
                {"step": step, "time": number(line.get("time")), "name": name, "value": float(value)}
                for step, line in by_step.items()
                for name, value in line.items()
                if "/" in name and isinstance(value, int | float) and not isinstance(value, bool)
            ],
        )

    def _add_events(self, lines: Sequence[Mapping[str, Any]]) -> None:
        rows = []
        for line in lines:
            kind = EVENTS.get(str(line.get("event", "")))
            fields = {key: value for key, value in line.items() if key not in ("time", "event")}
            rows.append(
                {
                    "time": number(line.get("time")),
                    "event": clean(str(line.get("event", ""))),
                    "severity": kind.severity.value if kind else "info",
                    "fields": json_text(fields),
                }
            )
        self._add("events", rows)

    def _add_audits(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Of an answer that was audited again after a resume, the last line counts."""
        rows: dict[tuple[int, ...], dict[str, Any]] = {}
        for line in lines:
            key = {name: line.get(name) for name in ("ordinal", "attempt", "index")}
            if all(is_whole(part) for part in key.values()):
                values = {name: number(line.get(name)) for name in ("reward", "gold")}
                margins = {name: json_text(numbers(line.get(name))) for name in ("margins", "gold_margins")}
                rows[tuple(key.values())] = {**key, **values, **margins}  # type: ignore[arg-type]
        self._add("audits", list(rows.values()), key=("ordinal", "attempt", "index"))

    def _add_groups(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Of a group that was trained again after a resume, the last line counts."""
        rows: dict[int, dict[str, Any]] = {}
        for line in lines:
            if is_whole(line.get("ordinal")):
                rows[line["ordinal"]] = {name: _typed(line.get(name), kind) for name, kind in GROUP_COLUMNS.items()}
        self._add("groups", list(rows.values()), key=("ordinal",))

    def _add_human(self, lines: Sequence[Mapping[str, Any]]) -> None:
        rows = []
        for line in lines:
            names = ("label_id", "parent_label_id", "verdict", "reason", "who")
            created = line.get("created_ns")
            is_known = is_whole(created)
            texts = {name: clean(str(line.get(name, ""))) for name in names}
            rows.append({**texts, "created_ns": created if is_known else 0, "row": json_text(line)})
        self._add("human", rows)

    def _add(self, table: str, rows: Sequence[Mapping[str, Any]], *, key: Sequence[str] = ()) -> None:
        """Insert rows, in place of those with the same key."""
        if not rows:
            return
        import pyarrow as pa

        self._db.register("new", pa.Table.from_pylist(list(rows)))
        try:
            if key:
                columns = ", ".join(f'"{name}"' for name in key)
                self._db.execute(f"DELETE FROM {table} WHERE ({columns}) IN (SELECT ({columns}) FROM new)")
            self._db.execute(f"INSERT INTO {table} BY NAME SELECT * FROM new")
        finally:
            self._db.unregister("new")

    def _refresh_heldout(self, moment: str, file: str) -> None:
        path = self.path / file
        try:
            require_regular(path)
            stat = path.stat()
            if self._parts.get(file) == (stat.st_size, stat.st_mtime_ns):
                return
            rows = sane(json.loads(path.read_bytes()))
            values = [_heldout(moment, row) for row in rows]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.problems[file] = one_line(repr(error))
            return
        self._parts[file] = (stat.st_size, stat.st_mtime_ns)
        self._db.execute("DELETE FROM heldout WHERE moment = ?", [moment])
        self._add("heldout", values)


def series(store: RunStore, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric."""
    found = store.rows("SELECT step, value FROM metrics WHERE name = ? AND isfinite(value) ORDER BY step", [name])
    return [row["step"] for row in found], [row["value"] for row in found]


def events(store: RunStore, *names: str) -> Iterator[dict[str, Any]]:
    """Events of these kinds in order, with their fields."""
    query = "SELECT * FROM events WHERE list_contains(?, event) ORDER BY time"
    for row in store.rows(query, [list(names)]):
        yield json.loads(row["fields"]) | {"time": row["time"], "event": row["event"]}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _heldout(moment: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "moment": moment,
        "prompt_id": clean(str(row["prompt_id"])),
        "prompt": json_text(row["prompt"]),
        "tags": [clean(str(tag)) for tag in row.get("tags") or ()],
        "answer": clean(str(row["answer"])),
        "score": number(row.get("score")),
        "scores": json_text(numbers(row.get("scores"))),
        "labels": json_text(row.get("labels") or []),
    }


def _chosen(name: str, columns: Sequence[str]) -> str:
    chosen = ", ".join(f'"{column}"' for column in columns)
    return f"{chosen}, len(token_ids) AS tokens" if name == "rollouts" else chosen


def _typed(value: object, kind: str) -> Any:
    """A value of a foreign file as a column's type; None: it has another one."""
    if kind == "VARCHAR":
        return clean(value) if isinstance(value, str) else None
    return number(value) if kind == "DOUBLE" else value if is_whole(value) else None
