"""One step of a learner in its own process, with its memory: `python -m tests.e2e.learner_memory_subject DIR SETTINGS`.
Memory that is freed within a step stays in a process, so a process with earlier work would not show it.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

from learners.build import build_learner
from learners.config import LearnConfig
from learners.memory import learner_memory
from solon.models.facts import read_facts
from solon.models.sizes import sizes_of
from tests.unit.learner_builders import make_group

PROMPT, ANSWER, ANSWERS = 8, 248, 8


def resident() -> int:
    """Bytes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_resident() -> int:
    """Peak bytes. Not `ru_maxrss`, which is inherited: a process begins with the peak of its parent."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def main(folder: str, settings: dict[str, Any]) -> None:
    config = LearnConfig(max_tokens_per_microbatch=2048, share_prompts=False, minibatches=1, **settings)
    sizes = sizes_of(read_facts(Path(folder)))
    assert sizes is not None
    before = resident()
    learner = build_learner(config, model=folder, temperature=1.0, seed=0)
    rng = np.random.default_rng(0)
    for step in range(2):
        answers = [rng.integers(3, sizes.vocabulary, ANSWER).tolist() for _ in range(ANSWERS)]
        rewards = rng.normal(size=ANSWERS).tolist()
        learner.step(step, [make_group(0, rng.integers(3, sizes.vocabulary, PROMPT).tolist(), answers, rewards)])
    peak = peak_resident()
    found = learner_memory(sizes, config, on_gpu=False, longest=PROMPT + ANSWER, runtime=0)
    print(json.dumps({"measured": peak - before, "estimated": found.total, "before": before, "parts": repr(found)}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
