"""Runs of stand-ins as child processes, and what they leave behind when they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from solon.ledger.conservation import Account, account
from tests.e2e.conftest import NURSERY, environment

SETTINGS = ("evaluate.evaluator=''", "evaluate.prompts=''", "feedback.min_valid=1", "ledger.batch_groups=4")


def standin_command(name: str, *arguments: str) -> list[str]:
    """`solon train examples/nursery.toml --name NAME ...` with stand-ins."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    module = [sys.executable, "-m", "tests.e2e.standin_solon"]
    return [*module, "train", str(NURSERY), "--name", name, *settings, *arguments]


@dataclass
class Child:
    """A `solon` process, and everything that it started."""

    process: subprocess.Popen[str]
    directory: Path
    temporary: Path
    log: Path
    seen: set[psutil.Process] = field(default_factory=set)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def look(self) -> None:
        """Record its present descendants."""
        with suppress(psutil.NoSuchProcess):
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.output[-3000:]
            assert time.monotonic() < deadline, self.output[-3000:]
            self.look()
            time.sleep(0.1)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: len(lines(self.directory / "metrics.jsonl")) >= step)

    def end(self, timeout_s: float = 90) -> int:
        """Its exit code, when it has ended by itself."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output[-3000:]
            self.look()
            time.sleep(0.1)
        return self.process.returncode

    def left(self) -> list[str]:
        """Its surviving processes: those seen before, and all that name its temporary folder."""
        found = {process for process in self.seen if _is_there(process)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = [*process.cmdline(), *process.environ().values()]
                if process.pid != os.getpid() and any(str(self.temporary) in word for word in words):
                    found.add(process)
        return sorted(_name(process) for process in found if _is_there(process))

    def wait_until_gone(self, timeout_s: float = 30) -> None:
        """Nothing of it is left within this time."""
        deadline = time.monotonic() + timeout_s
        while left := self.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.2)

    @property
    def summary(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return found


@contextmanager
def start(command: list[str], folder: Path, temporary: Path, name: str, **extra: str) -> Iterator[Child]:
    """A child that works in `folder`, with temporary files in `temporary`. Nothing of it outlives the block."""
    temporary.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(TMPDIR=str(temporary), RAY_TMPDIR=str(temporary), **extra),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    child = Child(process, folder / "runs" / name, temporary, log)
    try:
        yield child
    finally:
        child.look()
        if process.poll() is None:
            process.kill()
            process.wait(timeout=30)
        for other in child.seen:  # leftovers of a failing test; each was started by this child
            with suppress(psutil.Error):
                other.kill()


def lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a .jsonl file that may be growing."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def audit(directory: Path) -> Account:
    """The groups of a completed run."""
    return account(lines(directory / "events.jsonl"), lines(directory / "metrics.jsonl"), held=())


def orphans(before: set[str]) -> list[str]:
    """Files in shared memory that are new and that no process uses."""
    new = {path.name for path in Path("/dev/shm").iterdir()} - before
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            text = maps.read_text()
            used |= {name for name in new if f"/dev/shm/{name}" in text}
    return sorted(name for name in new - used if (Path("/dev/shm") / name).exists())


def _is_there(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.pid} {' '.join(process.cmdline())[:100]}"
    return str(process.pid)
