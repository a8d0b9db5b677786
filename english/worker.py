"""One stage of growing the English judge: `python -m english.worker STAGE POLICY FOLDER`.

Prints lines of JSON on stdout, `{"english": {"done": 0.5}}`; everything else there comes from libraries.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from english.answers import Answer
from english.judge import Course, Written, collect, evaluate_judge, questions, teach
from english.lessons import Examiner
from english.requests import Request
from solon.records import Message, Prompt

HELD_OUT = 250
"""Prompts that the judge is measured on, each answered twice."""
THREADS = 2
_STEP = 0.02


class Progress:
    """Prints the share that is done, in steps worth a line."""

    def __init__(self, start: float = 0.0, end: float = 1.0) -> None:
        self._start, self._span, self._said = start, end - start, -1.0

    def __call__(self, done: float) -> None:
        if done >= self._said + _STEP or done == 1.0:
            self._said = done
            say(done=self._start + self._span * done)


def say(**message: Any) -> None:
    """One message to the parent."""
    print(json.dumps({"english": message}), flush=True)


def answers(policy: Path, folder: Path, course: Course) -> None:
    """The policy answers the prompts that the judge is taught and measured on."""
    taught = collect(policy, course.requests, "train", seed=course.seed, opened=True, tick=Progress(0.0, 0.8))
    held = collect(policy, HELD_OUT, "heldout", seed=course.seed, opened=False, tick=Progress(0.8, 1.0))
    for name, written in (("taught", taught), ("held", held)):
        (folder / f"{name}.json").write_text(json.dumps(dataclasses.asdict(written)), encoding="utf-8")


def read(path: Path) -> Written:
    """What `answers` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return Written(
        [Request(row["text"], row["key"], tuple(row["likely"]), tuple(row["about"])) for row in rows["requests"]],
        [
            Prompt(prompt_id=p["prompt_id"], messages=tuple(Message(**m) for m in p["messages"]), tags=tuple(p["tags"]))
            for p in rows["prompts"]
        ],
        [Answer(**row) for row in rows["answers"]],
    )


def run(stage: str, policy: Path, folder: Path) -> None:
    """Run one stage."""
    course = Course(**json.loads((folder / "course.json").read_text(encoding="utf-8")))
    if stage == "answers":
        answers(policy, folder, course)
    elif stage == "teach":
        report = teach(policy, folder / "judge_fp", read(folder / "taught.json"), course, threads=THREADS,
                       tick=Progress())  # fmt: skip
        say(report={"passages": course.passages, "first_loss": report.first_loss, "last_loss": report.last_loss})
    elif stage == "int8":
        from compression.quantise import quantise_model

        quantise_model(folder / "judge_fp", folder / "judge", "w8a8")
    elif stage == "measure":
        asked = questions(Examiner.of(folder / "judge_fp"), read(folder / "held.json"))
        for name in ("judge_fp", "judge"):
            say(report={name: dataclasses.asdict(evaluate_judge(folder / name, asked))})
    else:
        raise ValueError(f"no stage {stage!r}")


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # closing the large libraries takes seconds
