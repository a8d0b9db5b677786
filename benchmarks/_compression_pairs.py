"""Preference pairs of the nursery for a compression: one principle each, decided by its programs."""

from __future__ import annotations

import json
import random
from pathlib import Path

from nursery.lessons import Mix, draw_any
from nursery.oracles import adherence
from nursery.prompts import draw_many


def write_pairs(path: Path, *, prompts: int, seed: int = 0, draws: int = 6) -> int:
    """Rows with `prompt`, `chosen`, `rejected` and the principle as tag; returns their number."""
    rng, rows = random.Random(f"compression-{seed}"), []
    for prompt in draw_many(prompts, seed=seed, held_out=False):
        answers = [draw_any(rng, prompt, Mix()) for _ in range(draws)]
        for name in sorted(adherence(prompt, answers[0])):
            kept = [one for one in answers if adherence(prompt, one)[name]]
            broken = [one for one in answers if not adherence(prompt, one)[name]]
            if kept and broken:
                turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
                rows.append({"prompt": turns, "chosen": kept[0], "rejected": broken[0], "tags": [name]})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return len(rows)
