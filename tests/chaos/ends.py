"""How a driver ended, and the messages that it owes."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.faults import ENDS_DRIVER, MAY_END_IT
from tests.chaos.verdict import lines_of

CAUSES = {"DiskFullError", "UnwritableError", "RunFailedError", "PayloadLostError", "WorkerLostError"}
"""Classes of errors with which a fault of the machine may end a run; others are errors in Solon."""
BEFORE_TRAINING = "interrupted before training began; nothing was lost"


@dataclass
class Driver:
    """One process of a run."""

    process: subprocess.Popen[bytes]
    log: Path
    begins_at: int
    """Where its lines begin in the log."""
    started: float
    faults: list[str] = field(default_factory=list)
    """The faults injected into it, or while it ran."""

    @property
    def is_doomed(self) -> bool:
        """It has a reason to end, and has not ended yet."""
        return bool(ENDS_DRIVER.intersection(self.faults))

    def poll(self) -> int | None:
        return self.process.poll()

    def said(self) -> str:
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
