"""Rows of `benchmarks/methods.py` on reward models, of the nursery and of SmolLM2, and SmolLM2 tuned by SFT and DPO."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._harness import Row
from benchmarks._methods_parts import ALIGN, LABEL, ROOT, lines, resolved, share, solon


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Models, prompts and settings of a reward model's rows."""

    name: str
    """Prefix of its names, and of the programs that grade."""
    align: str
    """Head of the alignment file."""
    learn: str
    write: tuple[str, ...]
    """How the policy answers held-out prompts, as settings of `solon label`."""
    prompts: int
    heldout: int


NURSERY_WORLD = World(
    name="nursery",
    align="".join(f'{key} = "{value}"\n' for key, value in ALIGN.items()) + LABEL % 8,
    learn="learn = { learning_rate = 1e-3, epochs = 2 }",
    write=("write.max_tokens=24",),
    prompts=512,
    heldout=256,
)
ENGLISH_ENGINE = '{ dtype = "bfloat16", max_model_len = 192, threads = 2 }'
ENGLISH_WORLD = World(
    name="english",
    align="".join(f'{key} = "{value.replace("nursery:", "english:")}"\n' for key, value in ALIGN.items())
    + '[label]\nfeedback = { template = "specialised", margin_clip = 6.0 }\n'
    + "judging = { max_model_len = 512, threads = 2 }\n"
    + f"write = {{ max_tokens = 56, answers = 4, temperature = 0.7, engine = {ENGLISH_ENGINE} }}\n",
    learn="max_tokens = 192\n"
    "learn = { learning_rate = 1e-4, batch = 8, max_tokens_per_microbatch = 2048, threads = 2 }",
    write=(
        "write.max_tokens=56", "write.temperature=0.7", "write.engine.dtype=bfloat16",
        "write.engine.max_model_len=192", "write.engine.threads=2", "judging.dtype=bfloat16", "judging.threads=2",
        "judging.max_model_len=256",
    ),
    prompts=256,
    heldout=64,
)  # fmt: skip


def reward_model(folder: Path, *, quick: bool) -> list[Row]:
    """A reward model of the nursery on held-out pairs of the policy, and its best of eight answers."""
    return _reward_rows(folder, NURSERY_WORLD, quick=quick)


def english(folder: Path, *, quick: bool) -> list[Row]:
    """SmolLM2 tuned by SFT and by DPO against the untuned one, and a reward model of it."""
    options = ["--set", "evaluate.max_prompts=32"] if quick else []
    result = solon("compare", str(ROOT / "examples" / "english_methods.toml"), *options, folder=folder)
    rows = []
    for one in result["methods"]:
        change, name = one["change"], f"SmolLM2, {one['name']}"
        rows.append(Row(f"{name}: change of held-out adherence", change["value"]))
        rows.append(Row(f"{name}: lower end of its 95 % interval over prompts", change["low"], goal=">= 0.0"))
        rows.append(Row(f"{name}: seconds of the machine", one["cost"]["seconds"]))
    return rows + [
        dataclasses.replace(row, metric=f"SmolLM2, {row.metric}")
        for row in _reward_rows(folder, ENGLISH_WORLD, quick=quick)
    ]


def _reward_rows(folder: Path, world: World, *, quick: bool) -> list[Row]:
    text = world.align + f'[[stages]]\ntype = "preferences"\nmax_prompts = {48 if quick else world.prompts}\n'
    text += f'[[stages]]\ntype = "reward_model"\n{world.learn}\n'
    (folder / "reward.toml").write_text(text)
    stages = {stage["name"]: stage for stage in solon("align", "reward.toml", folder=folder)["stages"]}
    report = stages["reward_model"]["report"]
    rows = [
        Row("reward model: agreement on held-out pairs", report["heldout_accuracy"]["value"], goal=">= 0.90"),
        Row("reward model: held-out pairs", report["heldout_accuracy"]["pairs"]),
        Row("reward model: calibration error", report["heldout_calibration_error"]),
    ]
    wins = _best_of_eight(folder, world, f"{stages['reward_model']['folder']}/model", quick=quick)
    rows.append(
        Row("best of 8 by the reward model: win rate over a random answer", float(np.mean(wins)), goal=">= 0.75")
    )
    return rows


def _best_of_eight(folder: Path, world: World, model: str, *, quick: bool) -> list[float]:
    """For each held-out prompt, how often the answer that the reward model likes best beats one of the eight, ties as
    halves, by programs."""
    import asyncio

    from cluster.evaluate import ProgramEvaluator
    from solon.feedback.labelling.dataset import first_rows

    asked = first_rows(resolved(f"{world.name}:heldout_prompts"), 64 if quick else world.heldout)
    (folder / "heldout.jsonl").write_text(
        "".join(
            json.dumps({"id": one.row_id, "prompt": one.prompt.messages[-1].content, "tags": list(one.prompt.tags)})
            + "\n"
            for one in asked
        )
    )
    label = ["--judge", model, "--constitution", resolved(f"{world.name}:constitution")]
    label += ["--policy", resolved(f"{world.name}:policy")]
    label += [part for setting in ("write.answers=8", *world.write) for part in ("--set", setting)]
    solon("label", "heldout.jsonl", "--out", "best", *label, folder=folder)
    by_row: dict[str, list[dict[str, Any]]] = {}
    for one in lines(folder / "best" / "ratings.jsonl"):
        by_row.setdefault(one["row_id"], []).append(one)
    decide, wins = ProgramEvaluator(world.name), list[float]()
    for one in asked:
        answers = by_row.get(one.row_id, [])
        if len(answers) < 2:
            continue
        judged = asyncio.run(decide([one.prompt] * len(answers), [a["completion"][-1]["content"] for a in answers]))
        scores = [share(item.obeys) for item in judged]
        best = scores[int(np.argmax([answer["reward"] for answer in answers]))]
        wins.append(float(np.mean([0.5 if best == other else float(best > other) for other in scores])))
    return wins
