"""Numbers about grown models: how often a policy keeps each principle, how often a judge agrees with the oracles."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import torch

from nursery.lessons import Examiner, Example, Mix, draw_example, pack
from nursery.model import TinyModel
from nursery.oracles import adherence
from nursery.sampling import sample_texts
from nursery.school import verdicts
from solon.records import Prompt

BATCH = 100


def mean_adherence(prompts: Sequence[Prompt], answers: Sequence[str]) -> dict[str, float]:
    """Share of the answers that keep each principle, and under `mean` the mean over answers."""
    kept: dict[str, list[float]] = defaultdict(list)
    for prompt, answer in zip(prompts, answers, strict=True):
        scores = adherence(prompt, answer)
        for name, value in scores.items():
            kept[name].append(float(value))
        kept["mean"].append(sum(scores.values()) / len(scores))
    return {name: sum(values) / len(values) for name, values in kept.items()}


def held_out_examples(number: int, *, seed: int) -> list[Example]:
    """Questions about held-out prompts, pairwise and pointwise, spoilt answers included."""
    rng, examiner = random.Random(f"held-out-{seed}"), Examiner()
    return [draw_example(rng, examiner, Mix(), held_out=True) for _ in range(number)]


def policy_examples(policy: TinyModel, prompts: Sequence[Prompt], *, seed: int) -> list[Example]:
    """Questions about answers that the policy sampled: one pointwise and one pairwise for each prompt."""
    examiner = Examiner()
    first, second = sample_texts(policy, prompts, seed=seed), sample_texts(policy, prompts, seed=seed + 1)
    found = [examiner.pointwise(p, a) for p, a in zip(prompts, first, strict=True)]
    return found + [examiner.pairwise(p, a, b) for p, a, b in zip(prompts, first, second, strict=True)]


@torch.no_grad()
def agreement(judge: TinyModel, examples: Sequence[Example]) -> dict[str, float]:
    """Share of the verdicts that have the oracle's sign, by `task/principle`; ties have none and are left out."""
    examiner = Examiner()
    right: dict[str, list[bool]] = defaultdict(list)
    ordered = sorted(examples, key=lambda e: e.length)
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        margins = iter(verdicts(judge, pack(batch, pad_id=examiner.encoder.pad_id)).tolist())
        for example in batch:
            task = "pairwise" if example.label_ids == examiner.builder.pair_ids else "pointwise"
            for name, target in zip(example.principles, example.targets, strict=True):
                margin = next(margins)
                if target != 0.5:
                    right[f"{task}/{name}"].append((margin > 0) == (target > 0.5))
    return {name: sum(values) / len(values) for name, values in sorted(right.items())}
