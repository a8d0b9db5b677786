"""Solon's side of `against_trl.py`, in a process of its own: an ordinary run of a run file, without its evaluations."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._peer_work import Course, load
from solon.cli.view import SilentView

NO_EVALUATION = ("evaluate.prompts=", "evaluate.evaluator=", "evaluate.audit_judge=")


class Watch(SilentView):
    """Notes when training begins, and asks the run to end after some seconds of it, as a user would (SIGTERM)."""

    def __init__(self, course: Course, seconds: float) -> None:
        self._course, self._seconds = course, seconds

    def training(self, totals: Any, ledger: Any) -> None:
        self._course.began_s = time.time()
        if self._seconds:
            timer = threading.Timer(self._seconds, os.kill, (os.getpid(), signal.SIGTERM))
            timer.daemon = True
            timer.start()


def course_of(directory: Path, course: Course) -> Course:
    """Adds what a run directory holds: times, rewards and saved policies."""
    for text in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        course.steps_s.append(line["time"])
        course.rewards.append(line.get("learn/reward/mean"))
    saved = sorted((directory / "checkpoints").glob("step-*"))
    course.policies = {f"step-{int(path.name.removeprefix('step-'))}": str(path / "policy") for path in saved}
    course.policies["final"] = str(saved[-1] / "policy")
    return course


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from cluster.train import train

    course = Course()
    run = load(options.run, [*options.set, *NO_EVALUATION])
    watch = Watch(course, options.seconds)
    summary = train(run, name="run", default_name="peer", root=options.out, view=watch)
    busy = ", ".join(f"{lane} {share:.2f}" for lane, share in summary["overlap"]["busy"].items())
    course.notes.append(f"busy {busy}; {summary['throughput']['rollouts_per_s']} rollouts/s; {summary['status']}")
    course_of(options.out / "run", course).write(options.out / "course.json")


if __name__ == "__main__":
    main()
