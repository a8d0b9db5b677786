"""Rows of `benchmarks/compression.py` on a certified judge that is put back into training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np

from benchmarks._harness import Row
from benchmarks._methods_parts import NURSERY, command, environment, solon
from nursery.grow import Nursery

SEEDS = 5
STEPS = 30


def loop_rows(grown: Nursery, pairs: Path, folder: Path, *, quick: bool) -> list[Row]:
    """Policies that learn from the certified int8 judge, and from the judge that it was made from, by seed."""
    gold, judge = folder / "gold.jsonl", folder / "certified"
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    gold.write_text("".join(json.dumps({**row, "principle": row["tags"][0]}) + "\n" for row in rows), encoding="utf-8")
    made = solon(
        "compress", str(grown.judge_fp), "--role", "judge", "--constitution", str(grown.constitution), "--template",
        "compact", "--pairs", str(gold), "--format", "w8a8", "--no-serve", "--out", str(judge), folder=folder,
    )  # fmt: skip
    after: dict[str, list[float]] = {"certified": [], "original": []}
    for seed in range(1 if quick else SEEDS):
        for name, model in (("certified", judge), ("original", grown.judge_fp)):
            found = solon(
                "train", str(NURSERY), "--name", f"{name}-{seed}", "--set", f"seed={seed}", "--set", f"judge={model}",
                "--set", f"steps={4 if quick else STEPS}", folder=folder,
            )  # fmt: skip
            after[name].append(float(found["eval"]["after"]["mean"]))
    print({name: np.round(values, 3).tolist() for name, values in after.items()}, flush=True)
    spread = max(after["original"]) - min(after["original"])
    apart = abs(float(np.mean(after["certified"]) - np.mean(after["original"])))
    return [
        Row("int8 judge certified", float(made["verdict"] == "accept"), goal=">= 1"),
        Row(
            "held-out adherence after training, mean over seeds (reference: by the judge it was made from)",
            float(np.mean(after["certified"])),
            float(np.mean(after["original"])),
        ),
        Row("difference of the means, over the range of seeds", apart / max(1e-9, spread), goal="<= 1"),
        Row("exit code of a run with an edited certificate", float(_refused(judge, folder)), goal=">= 2"),
    ]


def _refused(judge: Path, folder: Path) -> int:
    path = judge / "certificate.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"accept"', '"accept "'), encoding="utf-8")
    arguments = command("train", str(NURSERY), "--set", f"judge={judge}", "--set", "steps=1")
    done = subprocess.run(arguments, cwd=folder, env=environment(folder), capture_output=True, check=False)
    return done.returncode
