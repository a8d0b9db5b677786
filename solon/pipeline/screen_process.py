"""Waits for a process that renders prompts, and kills it when one prompt takes too long: a call into C does not end at
a signal."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from solon.errors import one_line

LOADING_S = 120.0
"""Time to load the tokenizer and its libraries."""
POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Ending:
    """How the process ended."""

    said: str
    """JSON on stdout, or the last line of its error output."""
    number: int | None
    """The prompt that it was rendering, from 0; None: it was still loading."""
    late_s: float = 0.0
    """Seconds after which it was killed; 0: it ended by itself."""


def wait(process: subprocess.Popen[str], place: Path, allowed_s: Callable[[int], float]) -> Ending:
    """place: file with the number of the current prompt; allowed_s: seconds for a prompt."""
    number, since = None, time.monotonic()
    try:
        while True:
            try:
                said, complaint = process.communicate(timeout=POLL_S)
                break
            except subprocess.TimeoutExpired:
                now = _number(place)
                if now != number:
                    number, since = now, time.monotonic()
                most = LOADING_S if number is None else allowed_s(number)
                if time.monotonic() - since > most:
                    return Ending("", number, late_s=most)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    lines = [line for line in complaint.splitlines() if line.strip()]
    complaint = one_line(lines[-1], longest=200) if process.returncode and lines else ""
    return Ending(said.strip() or complaint, _number(place))


def memory_for(processes: int, most: int) -> int:
    """Memory limit in bytes for each process: a quarter of the machine's memory between them, at most `most`."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min(most, machine // 4 // max(1, processes)), 512 << 20)


def _number(place: Path) -> int | None:
    try:
        found = place.read_bytes()
    except FileNotFoundError:
        return None
    return int.from_bytes(found, "little") if len(found) == 8 else None
