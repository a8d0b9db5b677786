"""Where verdicts outlive a process: one SQLite file, which any number of processes may share.

A verdict is kept as raw log-probs with what it cost, under the content address that the cache gives it. The file is
never half written: SQLite's write-ahead log survives a kill at any moment.
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
"""Layout of the file, and of the bytes of an answer."""
KEYS_PER_QUERY = 500
LOCK_S = 30.0
"""How long another process may hold the file."""
_HEAD = struct.Struct("<HBI")  # labels, whether it is unparsable, bytes of the likeliest word
_CREATE = (
    "CREATE TABLE verdicts (number INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, value BLOB NOT NULL, expires REAL)"
)

A = TypeVar("A")
R = TypeVar("R")


class Store(Protocol):
    """Answers by content address. Slow or gone is its own business: it may forget, it must not make things up."""

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """The answers that are stored, by key; missing keys are left out."""
        ...

    async def put_many(self, answers: Mapping[bytes, Answer]) -> None:
        """Store answers by key."""
        ...

    async def close(self) -> None:
        """Release files and connections."""
        ...


def encode(answer: Answer) -> bytes:
    """An answer as bytes; log-probs as they are, to the last bit. What it cost is left out: it was paid once."""
    number, top = len(answer.logprobs), answer.top.encode("utf-8", "replace")
    head = _HEAD.pack(number, answer.failure is Status.UNPARSABLE, len(top))
    return head + struct.pack(f"<{number}d", *answer.logprobs) + top + answer.detail.encode("utf-8", "replace")


def decode(value: bytes) -> Answer | None:
    """The answer again, marked as cached; None for bytes that are no answer."""
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

    entries: the oldest verdicts beyond so many are removed. Raises InputError when the file cannot be opened or
    written, is broken, or is something else; it is never replaced. The file must lie on a disk of this machine:
    SQLite's log does not work over a network.
    """

    def __init__(self, path: str | Path, *, entries: int, unparsable_s: float = 86_400.0) -> None:
        self.path = Path(path)
        self._entries = entries
        self._unparsable_s = unparsable_s
        self.evicted = 0
        """Verdicts that this process removed because the file was full."""
        self._is_closed = False
        # SQLite works in a thread of its own: a disk that is slow must not hold up the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="solon-verdicts")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._thread.submit(self._open).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise InputError(
                f"the file of verdicts {self.path} cannot be used: {error}; name another path, or make this one "
                "writable; if it is broken, remove it with its -wal and -shm files: verdicts are asked for again"
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
                # Two that turn the write-ahead log on at the same moment do not wait for each other: one is refused.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=LOCK_S, isolation_level=None)
        try:
            # Checked before anything is written: a file of another program stays as it is.
            connection.execute("BEGIN")
            _is_new(connection)
            connection.execute("ROLLBACK")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            # In one transaction: another process, or a kill, sees all of it or nothing.
            connection.execute("BEGIN IMMEDIATE")
            if _is_new(connection):
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version={SCHEMA}")
            connection.execute("COMMIT")
            # A file that was cut short shows it at its end, not at its beginning.
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
            if self._connection.in_transaction:  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise


def _is_new(connection: sqlite3.Connection) -> bool:
    """Whether nothing is in the file yet. Raises DatabaseError when what is in it are not verdicts that can be read."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version == 0 and not tables:
        return True
    if "verdicts" not in tables:
        raise sqlite3.DatabaseError(f"it holds {sorted(tables) or 'nothing'}, not verdicts")
    if version != SCHEMA:
        raise sqlite3.DatabaseError(f"its verdicts are in format {version}, expected {SCHEMA}")
    return False
