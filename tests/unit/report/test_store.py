"""Tables of a run: read while it writes, around damage, and closed to everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.errors import InputError
from solon.report.sql import ask
from solon.report.store import RunStore
from tests.unit.report.run_folders import label, lines, metrics, opened, part, rollout


def count(store: RunStore, table: str) -> int:
    return int(store.value(f"SELECT count(*) FROM {table}"))


def test_every_table_of_a_run_is_read(run: Path) -> None:
    store = opened(run)
    found = {name: count(store, name) for name in ("labels", "rollouts", "events", "heldout", "audits", "human")}
    assert found == {"labels": 32, "rollouts": 16, "events": 3, "heldout": 12, "audits": 8, "human": 0}
    assert store.value("SELECT max(tokens) FROM rollouts") == 2
    assert store.problems == {}


def test_a_second_look_reads_what_is_new_and_nothing_twice(run: Path) -> None:
    store = opened(run)
    part(run, "labels", [label(9, 0, "polite")], number=1)
    part(run, "rollouts", [rollout(0, 0, "changed", step=7)])  # a part that is written again with its outcomes
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "time": 1.0, "learn/reward/mean": 5.0}\n{"step": 5, "ti')
    store.refresh()
    assert count(store, "labels") == 33
    assert store.rows("SELECT text, step FROM rollouts") == [{"text": "changed", "step": 7}]
    assert store.value("SELECT max(step) FROM metrics") == 4
    with (run / "metrics.jsonl").open("a") as file:
        file.write('me": 1.0, "learn/reward/mean": 6.0}\n')
    store.refresh()
    assert store.value("SELECT max(value) FROM metrics WHERE name = 'learn/reward/mean'") == 6.0


def test_of_a_repeated_step_the_last_line_counts(run: Path) -> None:
    lines(run / "metrics.jsonl", [metrics(0), metrics(1), metrics(1) | {"learn/reward/mean": 9.0}])
    store = opened(run)
    assert store.value("SELECT value FROM metrics WHERE step = 1 AND name = 'learn/reward/mean'") == 9.0


def test_damaged_files_are_named_and_the_others_read(run: Path) -> None:
    (run / "labels" / "part-000001.parquet").write_bytes(b"PAR1 torn")
    (run / "heldout-after.json").write_text('[{"prompt_id": 1')
    with (run / "events.jsonl").open("a") as file:
        file.write("no json\n[1]\n")
    store = opened(run)
    assert count(store, "labels") == 32
    assert set(store.problems) == {"labels/part-000001.parquet", "heldout-after.json", "events.jsonl"}


def test_a_damaged_part_that_becomes_whole_is_read(run: Path) -> None:
    (run / "labels" / "part-000001.parquet").write_bytes(b"PAR1 torn")
    store = opened(run)
    part(run, "labels", [label(9, 0, "polite")], number=1)
    store.refresh()
    assert count(store, "labels") == 33
    assert store.problems == {}


def test_a_part_without_newer_columns_is_read(run: Path) -> None:
    old = {key: value for key, value in rollout(50, 0, "old", step=0).items() if key not in ("thought", "is_cut")}
    part(run, "rollouts", [old], number=1)
    store = opened(run)
    assert store.rows("SELECT text, thought FROM rollouts WHERE ordinal = 50") == [{"text": "old", "thought": None}]


def test_a_person_asks_one_select(run: Path) -> None:
    columns, rows = ask(opened(run), "SELECT principle_id, count(*) AS n FROM labels GROUP BY ALL ORDER BY ALL;")
    assert columns == ["principle_id", "n"]
    assert rows == [("brief", 16), ("polite", 16)]


@pytest.mark.parametrize(
    "query",
    [
        "COPY labels TO 'stolen.csv'",
        "DROP TABLE labels",
        "SELECT 1; SELECT 2",
        "",
        "selec",
        "SELECT * FROM read_text('/etc/hosts')",
        "SELECT * FROM '/etc/hosts'",
        "ATTACH '/tmp/x.db'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "PRAGMA database_list",
        "SELECT * FROM store",
        "SELECT 1) LIMIT 1; DROP TABLE labels; SELECT (1",
    ],
)
def test_other_queries_are_refused_and_change_nothing(run: Path, query: str) -> None:
    store = opened(run)
    with pytest.raises(InputError):
        ask(store, query)
    assert count(store, "labels") == 32
    assert not list(Path.cwd().glob("stolen*"))


def test_a_long_query_is_interrupted(run: Path) -> None:
    with pytest.raises(InputError, match=r"longer than 0\.3 s"):
        ask(opened(run), "SELECT count(*) FROM range(100000) a, range(100000) b, range(1000) c", longest_s=0.3)


def test_a_person_gets_at_most_a_thousand_rows(run: Path) -> None:
    assert len(ask(opened(run), "SELECT * FROM range(5000)")[1]) == 1000


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no directory"):
        RunStore(tmp_path / "none")


def test_rows_of_parts_that_were_removed_go(run: Path) -> None:
    store = opened(run)
    (run / "labels" / "part-000000.parquet").unlink()
    store.refresh()
    assert count(store, "labels") == 0


def test_a_file_that_was_cut_to_an_earlier_checkpoint_is_read_again(run: Path) -> None:
    store = opened(run)
    lines(run / "metrics.jsonl", [metrics(0), metrics(1) | {"learn/reward/mean": 99.0}])
    store.refresh()
    assert store.rows("SELECT step, value FROM metrics WHERE name = 'learn/reward/mean' ORDER BY step") == [
        {"step": 0, "value": 0.0},
        {"step": 1, "value": 99.0},
    ]


def test_long_texts_are_cut_in_the_database(run: Path) -> None:
    (row,) = ask(opened(run), "SELECT repeat('a', 100000) AS text, 1.5 AS number")[1]
    assert (len(row[0]), float(row[1])) == (1000, 1.5)


def group_line(ordinal: int, **changes: object) -> dict[str, object]:
    line: dict[str, object] = {"ordinal": ordinal, "attempt": 0, "outcome": "trained", "step": 1, "admitted": 1.5}
    return line | {"engine": "rollout-0", "generated": 2.5, "time": 4.0} | changes


def test_groups_are_read_and_of_a_group_trained_again_the_last_line_counts(run: Path) -> None:
    lines(run / "groups.jsonl", [group_line(0), group_line(1, engine=7, step="x", extra=1), group_line(0, step=2)])
    store = opened(run)
    assert store.problems == {}
    assert store.rows("SELECT ordinal, step, engine, judge, generated - admitted AS s FROM groups ORDER BY 1") == [
        {"ordinal": 0, "step": 2, "engine": "rollout-0", "judge": None, "s": 1.0},
        {"ordinal": 1, "step": None, "engine": None, "judge": None, "s": 1.0},
    ]
    assert ask(store, "SELECT count(*) AS n FROM groups")[1] == [(2,)]
