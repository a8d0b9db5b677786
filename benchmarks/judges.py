"""Quantised judges against the same judge in bf16: verdicts per second, and the loss of agreement.

    python benchmarks/judges.py [--quick] [--json PATH]

The nursery's judge and its large judge (trained on first use, which takes minutes) are quantised and asked about
held-out pairs that the oracles decide, in both orders; the policy generated half of the answers. A random-weight model
of 70 million parameters shows the rates where arithmetic dominates. All judges of a comparison are loaded in one
process and alternate part by part; each part is asked once, so that the prefix cache serves all of them equally. Rates
are medians over parts, ratios medians over the parts' own ratios: the machine may be shared.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from benchmarks._labels import nursery
from compression.judge_prompts import judge_sequences
from compression.quantise import quantise_model, weight_bytes
from nursery.grow import Nursery, grow_large_judge
from solon.cli.nursery_pairs import nursery_gold
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineOptions
from solon.feedback.judges.local import LocalJudge, open_judge
from solon.feedback.trials.candidates import WARM_UP_ITEMS, Candidate, comparing, parse_candidate
from solon.feedback.trials.comparison import Comparison, JudgeRow, compare
from solon.feedback.trials.gold import GoldPair
from solon.feedback.trials.measuring import Meter

OPTIONS = EngineOptions(max_model_len=256, max_running=256, kv_cache_gib=0.75, threads=1)
"""The cache holds all that is asked, whatever the dtype: one that is too small would make its engine slower."""
CALIBRATION_PROMPTS = 256
SPEED, LOST = ">= 2.5", "<= 0.5"


@dataclass(frozen=True, slots=True)
class Size:
    """Of a model with random weights."""

    name: str
    width: int
    feed_forward: int
    layers: int
    head_width: int = 64


RANDOM = Size("70 M parameters", 768, 2048, 10)


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers of questions."""

    pairs: int
    parts: int
    plain_pairs: int
    """Of the Transformers engine."""
    random_pairs: int
    random_parts: int
    large: bool
    """Whether the large judge is asked as well."""


FULL = Plan(pairs=2000, parts=10, plain_pairs=400, random_pairs=48, random_parts=6, large=True)
QUICK = Plan(pairs=200, parts=4, plain_pairs=100, random_pairs=32, random_parts=2, large=False)


class NetworkClock:
    """Seconds spent in a judge's network, of its total answering time."""

    def __init__(self, judge: LocalJudge) -> None:
        from solon.engines.vllm_weights import live_model

        self.seconds = 0.0
        self._started = 0.0
        network = live_model(judge.runner._engine._core)
        network.register_forward_pre_hook(self._start)
        network.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started


@dataclass(frozen=True, slots=True)
class Outcome:
    """A comparison, and the share of time spent in each judge's network."""

    comparison: Comparison
    network_shares: dict[str, float]

    def __getitem__(self, name: str) -> JudgeRow:
        return next(row for row in self.comparison.rows if row.name == name)


async def take_turns(
    candidates: Sequence[Candidate],
    pairs: Sequence[GoldPair],
    constitution: Constitution,
    *,
    parts: int,
    min_mass: float = 0.5,
) -> Outcome:
    """Load all judges, warm them up, and let them answer part by part in rotating order."""
    async with AsyncExitStack() as stack:
        judges: list[LocalJudge] = []
        for candidate in candidates:
            order = "prefix" if candidate.engine.backend == "vllm" else "length"
            feedback = comparing("compact", batch_order=order, min_mass=min_mass)
            judge = await open_judge(candidate.engine, feedback, constitution, name=candidate.name)
            stack.push_async_callback(judge.close)
            warm_up = [replace(item, conversation=()) for pair in pairs for item in pair.items]
            await judge.judge(warm_up[:WARM_UP_ITEMS])
            judges.append(judge)
        clocks = {
            c.name: NetworkClock(j) for c, j in zip(candidates, judges, strict=True) if c.engine.backend == "vllm"
        }
        meters = [Meter(judge, pairs, parts=parts) for judge in judges]
        for part in range(meters[0].num_parts):
            shift = part % len(meters)
            for meter in meters[shift:] + meters[:shift]:
                await meter.ask(part)
        sizes = [weight_bytes(Path(candidate.engine.model)) for candidate in candidates]
        found = [replace(meter.result(), disk_bytes=size) for meter, size in zip(meters, sizes, strict=True)]
    shares = {m.name: clocks[m.name].seconds / sum(p.seconds for p in m.parts) for m in found if m.name in clocks}
    outcome = Outcome(compare(found, pairs), shares)
    for row, one in zip(outcome.comparison.rows, found, strict=True):
        cached = one.cached_tokens / one.prompt_tokens
        network = f"; {shares[row.name]:.0%} of the time in the network" if row.name in shares else ""
        print(f"{row.name}: {row.verdicts_per_s:.4g} verdicts/s, {row.speedup:.2f} times the first; agreement "
              f"{row.agreement}; {cached:.0%} of the tokens from the prefix cache{network}")  # fmt: skip
    return outcome


def candidate(directory: Path, name: str, variant: str = "") -> Candidate:
    """A judge under the name of its numbers."""
    return replace(parse_candidate(f"{directory}@{variant}" if variant else str(directory), OPTIONS), name=name)


def quantised(
    source: Path, scratch: Path, schemes: Sequence[str], calibration: Sequence[Sequence[int]]
) -> dict[str, Path]:
    """Copies of a judge by scheme."""
    for scheme in schemes:
        quantise_model(source, scratch / scheme, scheme, calibration=calibration)
    return {scheme: scratch / scheme for scheme in schemes}


def quantised_candidates(copies: dict[str, Path]) -> list[Candidate]:
    # vLLM's four-bit kernel for CPUs does not support float32.
    return [candidate(path, name, "bf16" if name.startswith("w4") else "") for name, path in copies.items()]


def taught_rows(title: str, source: Path, grown: Nursery, plan: Plan, scratch: Path) -> list[Row]:
    """A trained judge, and the agreement of its copies."""
    constitution = Constitution.load(grown.constitution)
    taught = nursery_gold(grown, CALIBRATION_PROMPTS // 2, held_out=False)
    items = [item for pair in taught for item in pair.items]
    calibration = judge_sequences(
        str(source), items, template="compact", preamble=constitution.preamble, limit=CALIBRATION_PROMPTS
    )
    copies = quantised(source, scratch / source.name, ["w8a8", "w8a8-gptq", "w4a16", "w4a16-gptq"], calibration)
    pairs = nursery_gold(grown, plan.pairs)
    judges = [candidate(source, "bf16", "bf16"), candidate(source, "fp32", "fp32")]
    judges += quantised_candidates(copies)
    outcome = asyncio.run(take_turns(judges, pairs, constitution, parts=plan.parts))
    return rate_rows(title, outcome, ["w4a16-gptq"]) + quality_rows(title, outcome, list(copies))


def plain_rows(grown: Nursery, plan: Plan) -> list[Row]:
    """The nursery's judge in the Transformers engine."""
    constitution, pairs, rows = Constitution.load(grown.constitution), nursery_gold(grown, plan.plain_pairs), []
    plain = [candidate(grown.judge_fp, name, name) for name in ("hf", "bnb_int8", "bnb_nf4")]
    slow = asyncio.run(take_turns(plain, pairs, constitution, parts=plan.parts))
    for name in ("bnb_int8", "bnb_nf4"):
        judge = slow[name]
        rows += [
            Row(f"nursery judge, Transformers: {name} over fp32, verdicts/s", judge.speedup),
            Row(f"nursery judge, Transformers: {name}, agreement lost, points", judge.lost_points or 0.0),
        ]
    return rows


def rate_rows(title: str, outcome: Outcome, schemes: Sequence[str]) -> list[Row]:
    """How much faster than bf16, the first judge."""
    bf16, fp32, int8 = outcome["bf16"], outcome["fp32"], outcome["w8a8"]
    rows = [
        Row(f"{title}: int8 over bf16, verdicts/s", int8.speedup, goal=SPEED),
        Row(f"{title}: int8 over fp32, verdicts/s", int8.speedup / fp32.speedup),
        Row(f"{title}: verdicts/s in both orders, int8 (reference: bf16)", int8.verdicts_per_s, bf16.verdicts_per_s),
    ]
    rows += [Row(f"{title}: {name} over bf16, verdicts/s", outcome[name].speedup) for name in schemes]
    shares = outcome.network_shares
    outside = 1 / (1 - shares["bf16"])
    return [
        *rows,
        Row(f"{title}: share of the time in the network, int8 (reference: bf16)", shares["w8a8"], shares["bf16"]),
        Row(f"{title}: times as many as bf16 if its network took no time at all", outside),
    ]


def quality_rows(title: str, outcome: Outcome, schemes: Sequence[str]) -> list[Row]:
    """Each copy's agreement."""
    bf16, rows = outcome["bf16"], []
    for name in schemes:
        judge = outcome[name]
        assert judge.lost_points is not None
        assert judge.kappa_with_first is not None
        assert judge.flips is not None
        goal = LOST if name == "w8a8" else ""
        rows += [
            Row(f"{title}: {name}, agreement lost, points", judge.lost_points, goal=goal),
            Row(f"{title}: {name}, agreement with gold (reference: bf16)", judge.agreement.value, bf16.agreement.value),
            Row(f"{title}: {name}, kappa with bf16", judge.kappa_with_first.value),
            Row(f"{title}: {name}, verdicts flipped, %", 100 * judge.flips.value),
            Row(f"{title}: {name}, position consistency (reference: bf16)", consistency(judge), consistency(bf16)),
            Row(f"{title}: {name}, megabytes of weights (reference: the float32 file)", *megabytes(judge, bf16)),
        ]
    return rows


def megabytes(*judges: JudgeRow) -> list[float]:
    return [(judge.disk_bytes or 0) / 1e6 for judge in judges]


def consistency(judge: JudgeRow) -> float:
    assert judge.position_consistency is not None
    return judge.position_consistency.value


def random_rows(grown: Nursery, size: Size, plan: Plan, scratch: Path) -> list[Row]:
    """Rates of a model whose verdicts are noise: only their duration counts."""
    place = scratch / str(size.width)
    source = write_random(place / "source", size, grown)
    copies = quantised(source, place, ["w8a8", "w4a16"], [])
    judges = [candidate(source, "bf16", "bf16"), candidate(source, "fp32", "fp32"), *quantised_candidates(copies)]
    pairs = nursery_gold(grown, plan.random_pairs)
    constitution = Constitution.load(grown.constitution)
    # Random weights put almost no mass on the labels; the duration is the same.
    turns = take_turns(judges, pairs, constitution, parts=plan.random_parts, min_mass=1e-9)
    return rate_rows(size.name, asyncio.run(turns), ["w4a16"])


def write_random(path: Path, size: Size, grown: Nursery) -> Path:
    """A Llama with the nursery's tokenizer, for the same questions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    small = AutoConfig.from_pretrained(grown.judge_fp)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=small.vocab_size,
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // size.head_width,
        num_key_value_heads=size.width // size.head_width,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=small.eos_token_id,
        pad_token_id=small.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(grown.judge_fp / name, path / name)
    return path


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    plan = QUICK if options.quick else FULL
    grown = nursery()
    with tempfile.TemporaryDirectory() as folder:
        rows = taught_rows("nursery judge", grown.judge_fp, grown, plan, Path(folder))
        rows += plain_rows(grown, plan)
        if plan.large:
            grow_large_judge(grown)
            rows += taught_rows("large nursery judge", grown.large_judge, grown, plan, Path(folder))
        rows += random_rows(grown, RANDOM, plan, Path(folder))
    report("judges", rows, options.json)


if __name__ == "__main__":
    main()
