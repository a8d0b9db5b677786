"""Processes of this machine, read from `/proc`: parents, command lines, and whether they still run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process; a later process with the same number is a different one."""

    pid: int
    parent: int
    name: str
    born: int
    """Clock ticks since the machine was started."""

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """The process, or None if there is none or it is a zombie."""
        try:
            text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # The name is in parentheses and may contain some.
        begin, end = text.index("("), text.rindex(")")
        fields = text[end + 2 :].split()
        if fields[0] in ("Z", "X"):
            return None
        return cls(pid, int(fields[1]), text[begin + 1 : end], int(fields[19]))

    @property
    def is_there(self) -> bool:
        """Whether the process still runs."""
        found = Process.find(self.pid)
        return found is not None and found.born == self.born

    @property
    def command(self) -> str:
        """Its command line, or its own title; empty when it has ended."""
        return " ".join(self.arguments).strip()

    @property
    def arguments(self) -> list[str]:
        """The parts of its command line; empty when it has ended."""
        try:
            raw = (PROC / str(self.pid) / "cmdline").read_bytes()
        except OSError:
            return []
        return raw.decode("utf-8", "replace").removesuffix("\0").split("\0")

    def send(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.is_there:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def all_processes() -> list[Process]:
    """All visible processes."""
    numbers = [int(path.name) for path in PROC.iterdir() if path.name.isdigit()] if PROC.is_dir() else []
    return [found for number in numbers if (found := Process.find(number)) is not None]


def descendants(pids: Iterable[int], *, depth: int = 64) -> list[Process]:
    """Children and further generations down to `depth`, in breadth-first order."""
    by_parent: dict[int, list[Process]] = {}
    for process in all_processes():
        by_parent.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    generation = list(pids)
    for _ in range(depth):
        children = [child for pid in generation for child in by_parent.get(pid, ())]
        if not children:
            break
        found += children
        generation = [child.pid for child in children]
    return found


def wait_for_the_end(processes: Iterable[Process], *, timeout_s: float) -> list[Process]:
    """The processes that still run after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    left = [process for process in processes if process.is_there]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [process for process in left if process.is_there]
    return left


def how_it_ended(code: int) -> str:
    """The end of a process in words.

    >>> how_it_ended(-9), how_it_ended(1)
    ('was killed by SIGKILL', 'ended with exit code 1')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def failure_of(code: int, log: Path) -> str:
    """How a process ended, and the last lines of its log."""
    cause = "; the machine may have run out of memory" if code == -signal.SIGKILL else ""
    try:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
    except OSError as error:
        last = [f"(no log: {error})"]
    return "\n".join([f"{how_it_ended(code)}{cause}. Its last output:", *last])
