"""Stores verdicts beyond the life of a process: one SQLite file, shared by any number of processes.

A verdict is stored as raw log-probs with its cost, under its content address. The file is never half written: SQLite's
write-ahead log survives a kill at any moment.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from solon.errors import InputError
from solon.feedback.questions import Answer
from solon.verdicts import Status

SCHEMA = 2
"""Layout of the file and of encoded answers."""
KEYS_PER_QUERY = 500
LOCK_S = 30.0
"""How long another process may lock the file."""
_HEAD = struct.Struct("<HBI")  # labels, whether it is unparsable, bytes of the likeliest word
_CREATE = (
    "CREATE TABLE verdicts (number INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, value BLOB NOT NULL, expires REAL)"
)

A = TypeVar("A")
R = TypeVar("R")


class Store(Protocol):
    """Answers by content address. A store may be slow, fail or forget, but must not return wrong answers."""

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """The stored answers by key; missing keys are omitted."""
        ...

    async def put_many(self, answers: Mapping[bytes, Answer]) -> None:
        """Store answers by key."""
        ...

    async def close(self) -> None:
        """Release files and connections."""
        ...


def encode(answer: Answer) -> bytes:
    """An answer as bytes, with exact log-probs. Its cost is omitted: it was paid once."""
    number, top = len(answer.logprobs), answer.top.encode("utf-8", "replace")
    head = _HEAD.pack(number, answer.failure is Status.UNPARSABLE, len(top))
    return head + struct.pack(f"<{number}d", *answer.logprobs) + top + answer.detail.encode("utf-8", "replace")


def decode(value: bytes) -> Answer | None:
    """The answer, marked as cached; None for bytes that are no answer."""
    try:
        number, is_unparsable, top_bytes = _HEAD.unpack_from(value)
        logprobs = struct.unpack_from(f"<{number}d", value, _HEAD.size)
        start = _HEAD.size + 8 * number
        if len(value) < start + top_bytes or any(map(math.isnan, logprobs)):
            return None
        top, detail = value[start : start + top_bytes].decode(), value[start + top_bytes :].decode()
        failure = Status.UNPARSABLE if is_unparsable else None
        return Answer(logprobs, source="exact_cache", failure=failure, detail=detail, top=top)
    except (struct.error, ValueError):
        return None


class SqliteStore:
    """`store = SqliteStore("verdicts.sqlite", entries=1_000_000)`

    entries: most verdicts to keep; the oldest are removed. Raises InputError when the file cannot be opened or written,
    is damaged, or is not a verdict store; it is never replaced. The file must be on a local disk: SQLite's log does not
    work over a network.
    """

    def __init__(self, path: str | Path, *, entries: int, unparsable_s: float = 86_400.0) -> None:
        self.path = Path(path)
        self._entries = entries
        self._unparsable_s = unparsable_s
        self.evicted = 0
        """Verdicts that this process removed because the file was full."""
        self._is_closed = False
        # SQLite works in its own thread: a slow disk must not block the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="solon-verdicts")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._thread.submit(self._open).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise InputError(
                f"the file of verdicts {self.path} cannot be used: {error}; name another path, or make this one "
                "writable; if it is broken, remove it with its -wal and -shm files: verdicts are then recomputed"
            ) from None

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """See `Store.get_many`."""
        return await self._run(self._get, keys)

    async def put_many(self, answers: Mapping[bytes, Answer]) -> None:
        """See `Store.put_many`."""
        rows = [(key, encode(answer), self._expiry(answer)) for key, answer in answers.items()]
        await self._run(self._put, rows)

    async def close(self) -> None:
        """Close the database."""
        if not self._is_closed:
            self._is_closed = True
            await self._run(sqlite3.Connection.close, self._connection)
            self._thread.shutdown()

    async def _run(self, work: Callable[[A], R], argument: A) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, argument)

    def _expiry(self, answer: Answer) -> float | None:
        return None if answer.failure is None else time.time() + self._unparsable_s

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        until = time.monotonic() + LOCK_S
        while True:
            try:
                return self._connect()
            except sqlite3.OperationalError as error:
                # Two processes that enable the write-ahead log at the same time do not wait: one is refused.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=LOCK_S, isolation_level=None)
        try:
            # Checked before the first write: a file of another program stays unchanged.
            connection.execute("BEGIN")
            _is_new(connection)
            connection.execute("ROLLBACK")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            # In one transaction: another process, or a kill, sees all or nothing.
            connection.execute("BEGIN IMMEDIATE")
            if _is_new(connection):
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version={SCHEMA}")
            connection.execute("COMMIT")
            # A truncated file shows it at its end, not at its beginning.
            connection.execute("SELECT value FROM verdicts ORDER BY number DESC LIMIT 1").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        found: dict[bytes, Answer] = {}
        now = time.time()
        for start in range(0, len(keys), KEYS_PER_QUERY):
            chunk = keys[start : start + KEYS_PER_QUERY]
            places = ",".join("?" * len(chunk))
            query = f"SELECT key, value FROM verdicts WHERE key IN ({places}) AND (expires IS NULL OR expires > ?)"
            for key, value in self._connection.execute(query, (*chunk, now)):
                answer = decode(value)
                if answer is not None:
                    found[key] = answer
        return found

    def _put(self, rows: Sequence[tuple[bytes, bytes, float | None]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(
                "INSERT INTO verdicts (key, value, expires) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires",
                rows,
            )
            # Numbers rise by one, and only the lowest are ever removed: no need to count five million rows.
            evicted = self._connection.execute(
                "DELETE FROM verdicts WHERE number <= (SELECT MAX(number) FROM verdicts) - ?", (self._entries,)
            )
            self._connection.execute("COMMIT")
            self.evicted += evicted.rowcount
        except BaseException:
            if self._connection.in_transaction:  # a full disk may have ended it
                self._connection.execute("ROLLBACK")
            raise


def _is_new(connection: sqlite3.Connection) -> bool:
    """Whether the file is empty. Raises DatabaseError when its content is not readable verdicts."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version == 0 and not tables:
        return True
    if "verdicts" not in tables:
        raise sqlite3.DatabaseError(f"it holds {sorted(tables) or 'nothing'}, not verdicts")
    if version != SCHEMA:
        raise sqlite3.DatabaseError(f"its verdicts are in format {version}, expected {SCHEMA}")
    return False
