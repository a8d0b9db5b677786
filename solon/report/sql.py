"""A person's query over the tables of a run: one SELECT, bounded in time, memory and rows."""

from __future__ import annotations

import threading
from typing import Any

from solon.errors import InputError, one_line
from solon.report.store import RunStore

LONGEST_S = 10.0
MOST_ROWS = 1000
LONGEST_TEXT = 1000
NUMBERS = ("BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT", "UBIGINT", "DOUBLE", "FLOAT", "DECIMAL", "BOOLEAN")
_ONE = threading.Lock()
"""One query at a time in a process: each may use all the memory that the tables may have."""


def ask(store: RunStore, query: str, *, longest_s: float = LONGEST_S) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns and at most MOST_ROWS rows. The database reads the run's own files at most and writes none.

    Raises InputError for anything but one SELECT, an error of the query, and one that takes too long.
    """
    import duckdb

    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise InputError(one_line(str(error))) from None
    kinds = [str(one.type).rpartition(".")[2] for one in statements]
    if kinds != ["SELECT"]:
        raise InputError(
            f"got {' and '.join(kinds) or 'no statement'}, expected one SELECT, as in "
            "SELECT principle_id, avg(margin) FROM labels GROUP BY ALL"
        )
    if not _ONE.acquire(blocking=False):
        raise InputError("another query is running; wait for its end")
    try:
        return _asked(store, query, longest_s)
    finally:
        _ONE.release()


def columns_of(store: RunStore) -> dict[str, list[str]]:
    """Names of the columns by table."""
    rows = store.rows(
        "SELECT table_name, column_name FROM information_schema.columns ORDER BY table_name, ordinal_position"
    )
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["table_name"], []).append(row["column_name"])
    return found


def _asked(store: RunStore, query: str, longest_s: float) -> tuple[list[str], list[tuple[Any, ...]]]:
    import duckdb

    inner = f"({query.rstrip().rstrip(';')}\n)"
    with store.cursor() as cursor:
        timer = threading.Timer(longest_s, cursor.interrupt)
        timer.start()
        try:
            found = cursor.execute(f"DESCRIBE SELECT * FROM {inner}").fetchall()
            # Long texts are cut before they leave the database: a thousand of them could fill the memory.
            columns = [f"c{n}" for n in range(len(found))]
            cut = [
                name if row[1].partition("(")[0] in NUMBERS else f"left({name}::VARCHAR, {LONGEST_TEXT})"
                for name, row in zip(columns, found, strict=True)
            ]
            rows = cursor.execute(f"SELECT {', '.join(cut)} FROM {inner} AS t({', '.join(columns)}) LIMIT {MOST_ROWS}")
            return [row[0] for row in found], rows.fetchall()
        except duckdb.InterruptException:
            raise InputError(f"the query took longer than {longest_s:g} s; ask for less, such as one step") from None
        except duckdb.Error as error:
            raise InputError(one_line(str(error))) from None
        finally:
            timer.cancel()
