"""A person's query over the tables of a run: one SELECT, bounded in time, memory and rows."""

from __future__ import annotations

import threading
from typing import Any

from solon.errors import InputError, one_line
from solon.report.store import RunStore

LONGEST_S = 10.0
MOST_ROWS = 1000


def ask(store: RunStore, query: str, *, longest_s: float = LONGEST_S) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns and at most MOST_ROWS rows. The database reads the run's own files at most and writes none.

    Raises InputError for anything but one SELECT, an error of the query, and one that takes too long.
    """
    import duckdb

    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise InputError(one_line(str(error))) from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise InputError(
            f"got {len(statements)} statements, or one that is no SELECT; expected one SELECT, as in "
            "SELECT principle_id, avg(margin) FROM labels GROUP BY ALL"
        )
    with store.cursor() as cursor:
        timer = threading.Timer(longest_s, cursor.interrupt)
        timer.start()
        try:
            found = cursor.execute(f"SELECT * FROM ({query.rstrip().rstrip(';')}\n) LIMIT {MOST_ROWS}")
            return [column[0] for column in found.description], found.fetchall()
        except duckdb.InterruptException:
            raise InputError(f"the query took longer than {longest_s:g} s; ask for less, such as one step") from None
        except duckdb.Error as error:
            raise InputError(one_line(str(error))) from None
        finally:
            timer.cancel()
