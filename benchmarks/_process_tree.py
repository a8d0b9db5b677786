"""Processor time and memory of a process and everything it started, read from /proc while it runs."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
EVERY_S = 0.2
"""Between two readings of the processor time."""
MEMORY_EVERY_S = 2.0
"""Between two readings of the memory: the kernel walks page tables for it, on the cores that are measured."""


def parent_and_seconds(stat: str) -> tuple[int, float]:
    """The parent's id and the processor seconds from the text of /proc/PID/stat.

    >>> parent_and_seconds("7 (a (b) c) S 3 7 7 0 -1 0 0 0 0 0 150 50 999 999 20 0 1 0 5")[0]
    3
    """
    fields = stat.rpartition(")")[2].split()  # the name of a program may hold spaces and brackets
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def descendants(parents: dict[int, int], root: int) -> set[int]:
    """`root` and all processes below it. parents: the parent of every process.

    >>> sorted(descendants({2: 1, 3: 2, 4: 9}, 1))
    [1, 2, 3]
    """
    found, before = {root}, 0
    while len(found) > before:
        before = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


def at(samples: Sequence[tuple[float, float]], time_s: float) -> float:
    """The value at a time between two samples, interpolated; the nearest sample outside of them.

    >>> at([(0.0, 1.0), (2.0, 3.0)], 0.5)
    1.5
    """
    index = bisect_left(samples, (time_s,))
    if index == 0 or index == len(samples):
        return samples[min(index, len(samples) - 1)][1]
    (before_s, before), (after_s, after) = samples[index - 1], samples[index]
    return before + (after - before) * (time_s - before_s) / (after_s - before_s)


class TreeMeter:
    """`with TreeMeter(process.pid) as meter: process.wait()`, then `meter.cpu_s(start, end)`. Times: `time.time()`."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._known: dict[int, float] = {}
        """Processor seconds of every process of the tree, of ended ones too."""
        self._names: dict[int, str] = {}
        self.cpu: list[tuple[float, float]] = []
        self._by_process: list[tuple[float, dict[int, float]]] = []
        self.memory: list[tuple[float, float]] = []
        """Proportional set size of the whole tree, bytes."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tree-meter", daemon=True)

    def __enter__(self) -> TreeMeter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def cpu_s(self, start_s: float, end_s: float) -> float:
        """Processor seconds of the tree between two times."""
        return at(self.cpu, end_s) - at(self.cpu, start_s)

    def by_process(self, start_s: float, end_s: float) -> dict[str, float]:
        """Processor seconds between two times by the name of the process, largest first."""
        inside = [known for time_s, known in self._by_process if start_s <= time_s <= end_s]
        found: dict[str, float] = {}
        for pid, seconds in inside[-1].items() if inside else ():
            name = self._names.get(pid, "?")
            found[name] = found.get(name, 0.0) + seconds - inside[0].get(pid, 0.0)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def peak_bytes(self, start_s: float, end_s: float) -> float:
        """The most memory of the tree between two times, from samples."""
        inside = [value for time_s, value in self.memory if start_s <= time_s <= end_s]
        return max(inside, default=at(self.memory, end_s))

    def _work(self) -> None:
        next_memory = 0.0
        while not self._end.wait(EVERY_S):
            pids = self._read_cpu()
            if time.time() >= next_memory:
                self.memory.append((time.time(), float(sum(map(_pss, pids)))))
                next_memory = time.time() + MEMORY_EVERY_S

    def _read_cpu(self) -> set[int]:
        found = dict(_processes())
        pids = descendants({pid: parent for pid, (parent, _) in found.items()}, self._root)
        for pid in pids & found.keys():
            self._known[pid] = found[pid][1]
            if pid not in self._names or len(self._by_process) % 10 == 0:  # Ray renames its workers
                self._names[pid] = _name(pid) or self._names.get(pid, "?")
        self.cpu.append((time.time(), sum(self._known.values())))
        self._by_process.append((time.time(), dict(self._known)))
        return pids & found.keys()


def _processes() -> Iterator[tuple[int, tuple[int, float]]]:
    for name in os.listdir("/proc"):  # noqa: PTH208 - a path object per process would cost more than the reading
        if name.isdigit():
            try:
                yield int(name), parent_and_seconds(Path(f"/proc/{name}/stat").read_text())
            except (OSError, IndexError):  # it has ended
                continue


def _name(pid: int) -> str:
    """`ray::Learner`, or the last part of the program's path."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return ""
    program = words[0].decode(errors="replace").split(" ")[0]
    return program.partition(".")[0] if program.startswith("ray") else Path(program).name


def _pss(pid: int) -> int:
    """Bytes; memory that processes share is divided between them."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # it has ended
        return 0
    return 0
