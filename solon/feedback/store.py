"""Where verdicts outlive a process: one SQLite file, which any number of processes may share.

A verdict is kept as raw log-probs with what it cost, under the content address that the cache gives it. The file is
never half written: SQLite's write-ahead log survives a kill at any moment.
"""

from __future__ import annotations

import asyncio
import sqlite3
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from solon.errors import InputError
from solon.feedback.questions import Answer
from solon.records import Status

SCHEMA = 1
KEYS_PER_QUERY = 500
EVICT_EVERY = 4096
"""Verdicts written between two looks at the size of the file."""
_HEAD = struct.Struct("<BB")


A = TypeVar("A")
R = TypeVar("R")


class Store(Protocol):
    """Answers by content address. Slow or gone is its own business: it may forget, it must not make things up."""

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Answer]: ...

    async def put_many(self, answers: Mapping[bytes, Answer]) -> None: ...

    async def close(self) -> None: ...


def encode(answer: Answer) -> bytes:
    """An answer as bytes; log-probs as they are, to the last bit. What it cost is left out: it was paid once."""
    head = _HEAD.pack(len(answer.logprobs), answer.failure is Status.UNPARSABLE)
    return head + struct.pack(f"<{len(answer.logprobs)}d", *answer.logprobs) + answer.detail.encode("utf-8", "replace")


def decode(value: bytes) -> Answer | None:
    """The answer again, marked as cached; None for bytes that are no answer."""
    try:
        number, is_unparsable = _HEAD.unpack_from(value)
        logprobs = struct.unpack_from(f"<{number}d", value, _HEAD.size)
        detail = value[_HEAD.size + 8 * number :].decode()
        failure = Status.UNPARSABLE if is_unparsable else None
        return Answer(logprobs, source="exact_cache", failure=failure, detail=detail)
    except (struct.error, ValueError):
        return None


class SqliteStore:
    """`store = SqliteStore("verdicts.sqlite", entries=1_000_000)`

    entries: the oldest verdicts beyond so many are removed. Raises InputError when the file cannot be opened, or is
    something else.
    """

    def __init__(self, path: str | Path, *, entries: int, unparsable_s: float = 86_400.0) -> None:
        self.path = Path(path)
        self._entries = entries
        self._unparsable_s = unparsable_s
        self._until_eviction = EVICT_EVERY
        self._is_closed = False
        # SQLite works in a thread of its own: a disk that is slow must not hold up the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="solon-verdicts")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._thread.submit(self._open).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise InputError(
                f"the file of verdicts {self.path} cannot be used: {error}; if it is broken, remove it together with "
                "its -wal and -shm files, and verdicts are asked for anew"
            ) from None

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        return await self._run(self._get, keys)

    async def put_many(self, answers: Mapping[bytes, Answer]) -> None:
        rows = [(key, encode(answer), self._expiry(answer)) for key, answer in answers.items()]
        await self._run(self._put, rows)

    async def close(self) -> None:
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
        connection = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version not in (0, SCHEMA) or (version == 0 and tables):
            connection.close()
            raise sqlite3.DatabaseError(f"it holds {sorted(tables) or 'nothing'} in version {version}, not verdicts")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS verdicts "
            "(number INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, value BLOB NOT NULL, expires REAL)"
        )
        connection.execute(f"PRAGMA user_version={SCHEMA}")
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
            self._until_eviction -= len(rows)
            if self._until_eviction <= 0:
                self._until_eviction = EVICT_EVERY
                self._evict()
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def _evict(self) -> None:
        (count,) = self._connection.execute("SELECT COUNT(*) FROM verdicts").fetchone()
        if count > self._entries:
            oldest = "SELECT number FROM verdicts ORDER BY number LIMIT ?"
            self._connection.execute(f"DELETE FROM verdicts WHERE number IN ({oldest})", (count - self._entries,))
