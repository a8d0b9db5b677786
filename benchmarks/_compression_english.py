"""Rows of `benchmarks/compression.py` on SmolLM2, and the preference pairs in English that they read.

    python -m english.worker answers POLICY FOLDER                  # the policy answers; FOLDER/course.json holds {}
    python benchmarks/_compression_english.py POLICY FOLDER         # writes FOLDER/pairs.jsonl and FOLDER/aligned
    python benchmarks/compression.py --only english --english FOLDER/aligned --english-pairs FOLDER/pairs.jsonl

A prompt states wishes, and programs decide which answers keep them. Of two answers of the policy about the prompt's
topic, one that keeps a wish is preferred to one that does not.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._compression_guides import costs_by_gradients, guided_rows
from benchmarks._harness import Row
from compression.distil import save_trained
from compression.live import LiveModel, load_model
from compression.pairs import Pair, parted
from compression.reading import policy_pairs
from english.answers import Answer
from english.judge import Written
from english.wishes import keeps
from english.worker import read
from learners.direct.config import DirectConfig
from learners.direct.pairs import AnswerPair
from learners.offline import train_on_pairs

MOST_PAIRS = 3
"""Of an answered prompt, one for each wish at most."""
ALIGNED_WITH = 320
"""Pairs of the DPO."""
TRIED = (("w4a16-g64", "gptq"), ("w8a8", "rtn"))
"""Formats, the smallest first, until the gate accepts one. Rows of 576 weights fit groups of 64."""
GUIDED = ("w4a16-g64", "w8a8")
BUDGETS = (0.32, 0.4)
"""Shares of the bytes of the linear layers in 16 bits."""
SEARCHED, COMPARED = 64, 200
"""Pairs whose gradients are taken, and pairs of the gate whose flips are counted."""
MOST_TOKENS = 512
Compress = Callable[..., Mapping[str, Any]]
"""`compress(model, pairs, out, *options)`: the report of `solon compress`."""


def english_rows(model: Path, file: Path, folder: Path, compress: Compress) -> list[Row]:
    """The gate's verdict on SmolLM2's copies, and what guides its formats. All in bfloat16, which has half of the
    bytes and takes half of the time."""
    small, pairs = folder / "english-16", folder / "english-pairs.jsonl"
    shortest_pairs(file, pairs)
    aligned: Any = load_model(model)
    save_trained(aligned.bfloat16(), model, small)
    rows = []
    for form, algorithm in TRIED:
        began = time.perf_counter()
        found = compress(small, pairs, folder / f"english-{form}", "--format", form, "--algorithm", algorithm,
                         "--no-serve", "--answers", "0")  # fmt: skip
        rows += _verdict_rows(f"E: {form}, {algorithm}", found, time.perf_counter() - began)
        print(*rows[-5:], found["reason"], sep="\n", flush=True)
        if found["verdict"] == "accept":
            break
    read_pairs, _ = policy_pairs(small, pairs, max_tokens=MOST_TOKENS)
    parts, live = parted(read_pairs), LiveModel.load(small)
    costs = costs_by_gradients(live, parts["search"][:SEARCHED], GUIDED)
    return rows + guided_rows("E", live, parts["gate"][:COMPARED], costs, BUDGETS, random_ones=0)


def _verdict_rows(name: str, found: Mapping[str, Any], seconds: float) -> list[Row]:
    harms = {row["name"]: row for row in found["candidates"][-1]["rows"]}
    linear = found["linear_bytes"]
    return [
        Row(f"{name}: accepted", float(found["verdict"] == "accept"), goal=">= 1"),
        Row(f"{name}: linear weights smaller, 16 bits", linear["in_16_bits"] / linear["after"], goal=">= 3.3"),
        Row(f"{name}: net flips, upper bound (reference: measured)", harms["net flips"]["high"],
            harms["net flips"]["value"], goal="<= 0.02"),
        Row(f"{name}: flips (reference: their threshold)", harms["flips"]["value"], harms["flips"]["threshold"]),
        Row(f"{name}: seconds of the command", seconds),
    ]  # fmt: skip


# -- pairs --------------------------------------------------------------------------------------------------------


def shortest_pairs(source: Path, target: Path) -> int:
    """The shortest pair of each prompt, without its tags, of which there are too few for figures of their own. Returns
    their number."""
    best: dict[str, tuple[int, dict[str, Any]]] = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        size = max(len(row["chosen"]), len(row["rejected"]))
        prompt = json.dumps(row["prompt"])
        if prompt not in best or size < best[prompt][0]:
            best[prompt] = size, {**row, "tags": []}
    target.write_text("".join(f"{json.dumps(row)}\n" for _, row in best.values()), encoding="utf-8")
    return len(best)


def write_english_pairs(path: Path, written: Written, *, seed: int = 0) -> int:
    """Rows with `prompt`, `chosen`, `rejected` and the wish as tag; returns their number."""
    rng, rows = random.Random(f"compression-{seed}"), []
    about: dict[str, list[Answer]] = {}
    for request, answer in zip(written.requests, written.answers, strict=True):
        if not answer.is_cut:
            about.setdefault(request.key, []).append(answer)
    for request, prompt in zip(written.requests, written.prompts, strict=True):
        answers, found = about.get(request.key, []), []
        for tag, wish in _wishes(prompt.tags):
            kept = [one for one in answers if keeps(wish, one.text)]
            broken = [one for one in answers if not keeps(wish, one.text)]
            if kept and broken:
                found.append((tag, rng.choice(kept).text, rng.choice(broken).text))
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
        for tag, chosen, rejected in rng.sample(found, min(MOST_PAIRS, len(found))):
            rows.append({"prompt": turns, "chosen": chosen, "rejected": rejected, "tags": [tag]})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return len(rows)


def _wishes(tags: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each wish with the tag that a program decides: `avoid` by `avoid:wall`, where there is an argument."""
    full = {tag.partition(":")[0]: tag for tag in tags if ":" in tag}
    return [(tag, full.get(tag, tag)) for tag in tags if ":" not in tag]


def align(policy: Path, file: Path, target: Path) -> None:
    """DPO with pairs of the calibration part, which the gate does not read."""
    pairs, _ = policy_pairs(policy, file, max_tokens=MOST_TOKENS)
    lessons = [_answer_pair(one) for one in parted(pairs)["calibration"][:ALIGNED_WITH]]
    train_on_pairs(str(policy), lessons, DirectConfig(learning_rate=1e-5, threads=2, epochs=1), save_to=target)


def _answer_pair(one: Pair) -> AnswerPair:
    return AnswerPair(prompt=one.prompt, first=one.chosen, second=one.rejected)


def _written(parts: Sequence[Written]) -> Written:
    return Written(
        [one for part in parts for one in part.requests],
        [one for part in parts for one in part.prompts],
        [one for part in parts for one in part.answers],
    )


def main(policy: Path, folder: Path) -> None:
    """Write the pairs and align the policy with some of them."""
    written = _written([read(folder / f"{name}.json") for name in ("taught", "held")])
    print(f"{write_english_pairs(folder / 'pairs.jsonl', written)} pairs")
    align(policy, folder / "pairs.jsonl", folder / "aligned")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
