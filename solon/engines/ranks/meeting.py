"""How the ranks of one engine find each other on their machine, and what they exchange outside of the model.

The first rank opens a Unix socket without a file (Linux's abstract names) for commands, and a store of torch for the
process group of the model. A socket waits without a limit while an engine has no work, which a collective operation
does not, and ends at once when the process at its other end dies.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from typing import Any

from solon.errors import AttestationError, EngineFailedError, InputError, PayloadLostError, one_line

_LOST = (OSError, EOFError)
_ANSWERS = (InputError, AttestationError, PayloadLostError, EngineFailedError)
"""Errors that a rank tells the others as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the other ranks find the first one."""

    host: str
    port: int
    """Of torch's store."""
    address: str
    """Of the socket for commands."""
    key: bytes = field(repr=False)
    """Proves that a process belongs to this engine."""


class EngineRanks:
    """A rank of an engine. `EngineRanks()` is an engine of one process."""

    rank = 0
    size = 1

    def exchange(self, mine: Any) -> list[Any]:
        """A value of every rank, in the order of the ranks. Every rank must call it. Raises EngineFailedError that
        names a rank which is gone or does not answer."""
        return [mine]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Every rank enters this block, and leaves it when all are done. Raises what another rank raised in it."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(EngineFailedError):  # the own error says more
                self.exchange(_told(error))
            raise
        for other in self.exchange(None):
            if other is not None:
                raise other


ALONE = EngineRanks()


class FirstRank(EngineRanks):
    """The rank that leads."""

    def __init__(self, name: str, size: int, *, timeout_s: float) -> None:
        """timeout_s: how long it waits for an answer of another rank."""
        self.size = size
        self._name, self._timeout_s = name, timeout_s
        self._others: list[Connection] = []
        self.store: Any = None

    def open(self, host: str) -> Meeting:
        """Where the others find this rank."""
        from datetime import timedelta

        from torch import distributed as dist

        self.store = dist.TCPStore(  # type: ignore[attr-defined]
            host, 0, self.size, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=self._timeout_s)
        )
        self._key, address = secrets.token_bytes(32), f"\0solon-engine-{secrets.token_hex(16)}"
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(address)
        self._door.listen(self.size)
        return Meeting(host=host, port=int(self.store.port), address=address, key=self._key)

    def accept(self) -> None:
        """Returns when all other ranks are connected. Raises EngineFailedError when they do not come in time."""
        found: dict[int, Connection] = {}
        end = time.monotonic() + self._timeout_s
        with self._door:
            while missing := sorted(set(range(1, self.size)) - found.keys()):
                self._door.settimeout(max(0.01, end - time.monotonic()))
                try:
                    other, _ = self._door.accept()
                except TimeoutError:
                    raise EngineFailedError(
                        f"engine {self._name}: rank {', '.join(map(str, missing))} of {self.size} did not come within "
                        f"{self._timeout_s:g} s"
                    ) from None
                connection = Connection(other.detach())
                with contextlib.suppress(AuthenticationError, *_LOST):  # a stranger
                    deliver_challenge(connection, self._key)
                    answer_challenge(connection, self._key)
                    found[int(connection.recv())] = connection
        self._others = [found[rank] for rank in sorted(found)]

    def tell(self, message: Any) -> None:
        """Send the other ranks a message. Raises EngineFailedError."""
        for rank, other in enumerate(self._others, start=1):
            with self._reaching(rank):
                other.send(message)

    def exchange(self, mine: Any) -> list[Any]:
        values = [mine]
        for rank, other in enumerate(self._others, start=1):
            with self._reaching(rank):
                if not other.poll(self._timeout_s):
                    raise EngineFailedError(
                        f"engine {self._name}: rank {rank} of {self.size} did not answer within {self._timeout_s:g} s"
                    )
                values.append(other.recv())
        self.tell(values)
        return values

    def close(self) -> None:
        """Let the other ranks end."""
        for other in self._others:
            with contextlib.suppress(*_LOST):
                other.send(None)
            other.close()
        self._others = []

    @contextlib.contextmanager
    def _reaching(self, rank: int) -> Iterator[None]:
        try:
            yield
        except _LOST:
            raise EngineFailedError(f"engine {self._name}: rank {rank} of {self.size} is gone") from None


class OtherRank(EngineRanks):
    """A rank that follows."""

    def __init__(self, name: str, rank: int, size: int, meeting: Meeting) -> None:
        self.rank, self.size = rank, size
        self._name = name
        with self._reaching():
            self._first = Client(meeting.address, family="AF_UNIX", authkey=meeting.key)
            self._first.send(rank)

    def join(self, meeting: Meeting, *, timeout_s: float) -> Any:
        """The store at which the ranks of the model meet."""
        from datetime import timedelta

        from torch import distributed as dist

        timeout = timedelta(seconds=timeout_s)
        return dist.TCPStore(meeting.host, meeting.port, self.size, is_master=False, timeout=timeout)  # type: ignore[attr-defined]

    def hear(self) -> Any:
        """The first rank's next message; waits without a limit. Raises EngineFailedError when that rank is gone."""
        with self._reaching():
            return self._first.recv()

    def exchange(self, mine: Any) -> list[Any]:
        with self._reaching():
            self._first.send(mine)
            values: list[Any] = self._first.recv()
        return values

    def close(self) -> None:
        """End the connection: the first rank notices at its next message."""
        self._first.close()

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except _LOST:
            raise EngineFailedError(f"engine {self._name}: the first of {self.size} ranks is gone") from None


def _told(error: Exception) -> Exception:
    """The error for the other ranks, which must be able to read it."""
    if isinstance(error, _ANSWERS):
        return type(error)(str(error))
    return EngineFailedError(f"{type(error).__name__}: {one_line(str(error), longest=500)}")
