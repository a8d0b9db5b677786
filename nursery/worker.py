"""A child process that grows a part of a nursery: `python -m nursery.worker LANE DIRECTORY SEED EFFORT`.

Tiny networks gain nothing from a second thread, so the lanes `one` and `two` run side by side on one thread each; the
large judge, which few ask for, is a lane of its own. A worker says how far it is in lines of JSON on stdout; on stdin
it hears which part another worker has finished, and when stdin closes its parent is gone and so is it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from nursery import measure, prompts, quantise
from nursery.language import WordEncoder, write_tokenizer
from nursery.model import TinyModel, load
from nursery.recipe import Recipe, recipe
from nursery.sampling import sample_texts
from nursery.school import Tick, teach_judge, teach_policy

NUM_EXAMPLES = 600
"""Question sets per judge and source that agreement is measured on."""
LARGE_THREADS = 2


class Worker:
    """Grows its lane's part of a nursery into a directory."""

    def __init__(self, directory: Path, plan: Recipe) -> None:
        self._directory = directory
        self._plan = plan
        self._finished: defaultdict[str, threading.Event] = defaultdict(threading.Event)

    def lane_one(self) -> None:
        """The judge, then the numbers about it and the policy."""
        self._save("judge_fp", teach_judge(self._plan.judge, self._tick("judge")))
        self._say(part="judge", finished=True)
        self._finished["policy"].wait()
        policy = load(self._directory / "policy")
        report = {"policy": self._policy_report(policy)}
        self._tick("measure one")(0.5)
        self._say(part="measure one", done=1.0, report={**report, "judge_fp": self._judge_report("judge_fp", policy)})

    def lane_two(self) -> None:
        """The policy, the audit judge, and the judge in int8."""
        self._save("policy", teach_policy(self._plan.policy, self._tick("policy")))
        self._say(part="policy", finished=True)
        self._save("audit_judge", teach_judge(self._plan.audit_judge, self._tick("audit judge")))
        quantise.prepare()
        self._tick("int8")(0.5)
        self._finished["judge"].wait()
        quantise.to_int8(self._directory / "judge_fp", self._directory / "judge")
        self._tick("int8")(1.0)
        policy = load(self._directory / "policy")
        report = {"judge": self._judge_report("judge", policy)}
        self._tick("measure two")(0.5)
        report["audit_judge"] = self._judge_report("audit_judge", policy)
        self._say(part="measure two", done=1.0, report=report)

    def lane_large(self) -> None:
        """The large judge. The policy whose answers it is measured on is there already."""
        torch.set_num_threads(LARGE_THREADS)
        self._save("large_judge", teach_judge(self._plan.large_judge, self._tick("large judge")))
        report = self._judge_report("large_judge", load(self._directory / "policy"))
        self._say(part="large judge", done=1.0, report={"large_judge": report})

    def listen(self) -> None:
        """Hear what others have finished; end with the parent."""
        for line in sys.stdin:
            self._finished[line.strip()].set()
        os._exit(1)

    def _save(self, name: str, model: TinyModel) -> None:
        encoder, directory = WordEncoder(), self._directory / name
        directory.mkdir()
        model.save(directory, end_id=encoder.eos_token_id, pad_id=encoder.pad_id)
        write_tokenizer(directory)

    def _policy_report(self, policy: TinyModel) -> dict[str, float]:
        asked = prompts.draw_many(prompts.NUM_HELDOUT, seed=self._plan.seed, held_out=True)
        return measure.mean_adherence(asked, sample_texts(policy, asked, seed=self._plan.seed))

    def _judge_report(self, name: str, policy: TinyModel) -> dict[str, dict[str, float]]:
        directory, seed = self._directory / name, self._plan.seed
        judge = quantise.load_int8(directory) if name == "judge" else load(directory)
        asked = prompts.draw_many(prompts.NUM_HELDOUT, seed=seed, held_out=True)
        return {
            "held_out": measure.agreement(judge, measure.held_out_examples(NUM_EXAMPLES, seed=seed)),
            "policy_answers": measure.agreement(judge, measure.policy_examples(policy, asked, seed=seed + 7)),
        }

    def _tick(self, part: str) -> Tick:
        return lambda done: self._say(part=part, done=done)

    def _say(self, **message: Any) -> None:
        print(json.dumps(message), flush=True)


def main(lane: str, directory: str, seed: str, effort: str) -> None:
    """Run one lane to its end."""
    torch.set_num_threads(1)
    worker = Worker(Path(directory), recipe(seed=int(seed), effort=float(effort)))
    threading.Thread(target=worker.listen, daemon=True).start()
    {"one": worker.lane_one, "two": worker.lane_two, "large": worker.lane_large}[lane]()
    sys.stdout.flush()
    os._exit(0)  # nothing of the large libraries needs winding up, and that takes seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
