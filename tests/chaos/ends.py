"""How a driver ended, and the messages that it owes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.cluster_of_our_own import ROOT
from tests.chaos.faults import ENDS_DRIVER, MAY_END_IT, end
from tests.chaos.verdict import lines_of

CAUSES = {"DiskFullError", "UnwritableError", "RunFailedError", "PayloadLostError", "WorkerLostError"}
"""Classes of errors with which a fault of the machine may end a run; others are errors in Solon."""
WRITTEN_WITHIN_S = 5.0
BEFORE_TRAINING = "interrupted before training began; nothing was lost"


@dataclass
class Driver:
    """One process of a run."""

    process: subprocess.Popen[bytes]
    writer: subprocess.Popen[bytes]
    """Writes what it prints to the log: a full disk of the driver keeps no line from whoever reads along."""
    log: Path
    begins_at: int
    """Where its lines begin in the log."""
    started: float
    faults: list[str] = field(default_factory=list)
    """The faults injected into it, or while it ran."""

    @classmethod
    def start(cls, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Driver:
        """Start a driver, its lines appended to the log."""
        with log.open("ab") as file:
            begins_at = file.tell()
            writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, start_new_session=True)
        assert writer.stdin
        with writer.stdin as pipe:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        return cls(process, writer, log=log, begins_at=begins_at, started=time.time())

    @property
    def is_doomed(self) -> bool:
        """It has a reason to end, and has not ended yet."""
        return bool(ENDS_DRIVER.intersection(self.faults))

    def poll(self) -> int | None:
        return self.process.poll()

    def end(self) -> None:
        """Kill it, and wait until its log is written."""
        end(self.process)
        self._finish_log()
        end(self.writer)

    def _finish_log(self) -> None:
        with suppress(subprocess.TimeoutExpired):  # a process that it started may hold the pipe
            self.writer.wait(timeout=WRITTEN_WITHIN_S)

    def said(self) -> str:
        """What it printed so far; all of it once it has ended."""
        if self.process.poll() is not None:
            self._finish_log()
        with self.log.open("rb") as file:
            file.seek(self.begins_at)
            return file.read().decode(errors="replace")

    def summary(self, *places: Path) -> dict[str, Any]:
        """The summary that it wrote; empty: none."""
        for place in places:
            path = place / "summary.json"
            with suppress(OSError, ValueError):
                if path.stat().st_mtime >= self.started:
                    return dict(json.loads(path.read_text()))
        return {}

    def complaints(self, *places: Path, names_command: bool) -> tuple[list[str], str]:
        """Complaints about this end, and the class of its cause; a killed driver may print nothing."""
        code, summary, said = self.process.returncode, self.summary(*places), self.said()
        if code == -signal.SIGKILL and {"kill driver", "cut file"}.intersection(self.faults):
            return [], ""
        # A signal may arrive before the driver has its handlers, or before training has begun.
        if code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP) or (code == 1 and BEFORE_TRAINING in said):
            asked = {"end driver", "hang-up driver"}.intersection(self.faults)
            return ([], "") if asked else ([self._told(f"ended with {code}, and no one asked it to")], "")
        if code == 0 and summary.get("status") == "stopped":
            return [], ""
        cause, _, sentence = str(summary.get("failure", "")).partition(":")
        found = []
        if not MAY_END_IT.intersection(self.faults):
            found.append(f"the driver ended with {code}")
        if code != 1 or cause not in CAUSES:
            found.append(f"exit code {code} and the cause {cause or 'is missing'}, expected 1 and one of {CAUSES}")
        if summary.get("status") != "failed" or not sentence.strip():
            found.append(f"its summary says {summary.get('status')}, without a cause" if summary else "no summary")
        if names_command and "Traceback" in said:
            found.append("it printed a traceback")
        if names_command and "--resume" not in said:
            found.append("it did not name the command that resumes it")
        return ([self._told("; ".join(found))] if found else []), cause

    def _told(self, what: str) -> str:
        return f"{what}. After {', '.join(self.faults) or 'no fault'}: {self.said()[-1500:]}"


def last_events(directory: Path) -> str:
    """The last things that a run recorded."""
    events = [event for event in lines_of(directory / "events.jsonl") if event["event"] != "published"][-3:]
    failure = ""
    with suppress(OSError, ValueError):
        failure = json.loads((directory / "summary.json").read_text()).get("failure", "")
    return f"{failure} {json.dumps(events)[:1500]}"
