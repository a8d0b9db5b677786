"""The work that two trainers are given, read from a run file: both sides of `against_trl.py` load it here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config.run_file import RunFile
from solon.files.prompts import PromptSource
from solon.records import Group, Prompt, Rollout

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SAME_WORK = (
    "learn.objective=group_relative",
    "learn.kl_coefficient=0",
    "learn.epochs=1",
    "learn.minibatches=1",
    "learn.advantage_epsilon=1e-4",
)
"""Solon's settings beyond its run file, so that both sides do the same: no critic, no reference, one optimiser step."""


def settings_here(policy: str) -> list[str]:
    """Settings of a policy's run on this processor, as `solon demo --english` chooses them."""
    from solon.cli.train import BFLOAT16
    from solon.host.processor import computes_bfloat16

    return list(BFLOAT16) if policy == "english" and computes_bfloat16() else []


STAND_IN = """
policy = "{model}"
judge = "{model}"
prompts = "{prompts}"
constitution = "{constitution}"
steps = 4
[rollout]
group_size = 4
max_tokens = 32
max_model_len = 256
num_cpus = 0.5
[judging]
max_model_len = 1024
num_cpus = 0.5
[feedback]
task = "pointwise"
min_mass = 1e-9
[ledger]
batch_groups = 4
[learn]
learning_rate = 1e-6
num_cpus = 0.5
"""
"""For a policy without a world of its own: it judges itself, which teaches nothing but costs what a judge costs."""


def run_file(policy: str, scratch: Path) -> Path:
    """The run file that a `--policy` denotes: `nursery`, `english` or the directory of a model."""
    if (known := EXAMPLES / f"{policy}.toml").is_file():
        return known
    written = scratch / "stand_in.toml"
    prompts, constitution = EXAMPLES / "assistant_prompts.jsonl", EXAMPLES / "assistant.yaml"
    model = Path(policy).resolve()
    written.write_text(STAND_IN.format(model=model, prompts=prompts, constitution=constitution), encoding="utf-8")
    return written


def load(path: Path, overrides: Sequence[str]) -> RunFile:
    """The run file with paths in place of names; grows what is not in the cache."""
    from cluster.pipeline_file import load_run
    from solon.cli.names import with_paths

    return with_paths(load_run(path, overrides=list(overrides)), progress=False)


def prompts_of(run: RunFile) -> tuple[PromptSource, Sequence[Prompt]]:
    """The training prompts in the order in which Solon trains them, and the held-out ones."""
    from cluster.preflight.checks import check_inputs

    inputs = check_inputs(run, fetch=False)
    return PromptSource(inputs.prompts, seed=run.seed), inputs.heldout


def group_of(ordinal: int, prompt: Prompt, texts: Sequence[str], cut: Sequence[bool]) -> Group:
    """Answers that another program generated, in the form that Solon's judges accept: they read the texts alone."""
    nothing = np.zeros(0, np.int32)
    rollouts = tuple(
        Rollout(
            token_ids=nothing,
            logprobs=np.zeros(0, np.float32),
            segments=((0, 0),),
            finish_reason="length" if is_cut else "stop",
            text=text.strip(),
            is_cut=is_cut,
        )
        for text, is_cut in zip(texts, cut, strict=True)
    )
    return Group(ordinal=ordinal, attempt=0, prompt=prompt, prompt_token_ids=nothing, rollouts=rollouts)


@dataclass(slots=True, kw_only=True)
class Course:
    """What a side reports of its training. Times are `time.time()`."""

    began_s: float = 0.0
    """The first prompt of the first step is about to be sampled; everything is built."""
    steps_s: list[float] = field(default_factory=list)
    """When each step was trained."""
    paused_s: list[tuple[float, float]] = field(default_factory=list)
    """Periods that are not the trainer's: snapshots for this benchmark."""
    policies: dict[str, str] = field(default_factory=dict)
    """Directories: `final`, `snapshot`, or `step-N`."""
    rewards: list[float] = field(default_factory=list)
    """Mean of every step's batch."""
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Course:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**found | {"paused_s": [(start, end) for start, end in found["paused_s"]]})

    def paused_until(self, time_s: float) -> float:
        """Seconds of pauses before a time."""
        return sum(min(end, time_s) - start for start, end in self.paused_s if start < time_s)

    @property
    def trained_s(self) -> float:
        """Seconds of training, to the end of the last step."""
        return self.steps_s[-1] - self.began_s - self.paused_until(self.steps_s[-1])

    def cpu_s(self, between: Callable[[float, float], float]) -> float:
        """Processor seconds of training. between: those of the process tree between two times."""
        end_s = self.steps_s[-1]
        pauses = [(start, end) for start, end in self.paused_s if start < end_s]
        return between(self.began_s, end_s) - sum(between(start, min(end, end_s)) for start, end in pauses)

    def policy_at(self, seconds: float) -> str:
        """The saved policy of the last step that was trained within these seconds of training; "": none was saved."""
        if "snapshot" in self.policies:
            return self.policies["snapshot"]
        steps = {int(name.removeprefix("step-")): path for name, path in self.policies.items() if "step-" in name}
        if self.trained_s <= seconds:
            return self.policies["final"]
        done = sum(time_s - self.began_s - self.paused_until(time_s) <= seconds for time_s in self.steps_s)
        earlier = [step for step in steps if step <= done]
        return steps[max(earlier)] if earlier else ""


def lora_settings(run: RunFile) -> dict[str, Any] | None:
    """Settings of low-rank adapters under their names in `peft`; None: all weights are trained."""
    lora = run.learn.lora
    if lora is None:
        return None
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return {"r": lora.r, "lora_alpha": lora.alpha, "target_modules": targets, "lora_dropout": 0.0}
