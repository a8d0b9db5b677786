"""Labels: rate against the bare engine and the plain pipeline, cost of removing bias, calibration.

    python benchmarks/feedback.py [--quick] [--json PATH] [--only rates,prefix,bias,calibration,faults,comparisons]

Judge: the nursery's int8 judge on two cores. Both sides of a rate answer the same questions alternately, new ones every
round, so that neither side profits from the other's cache entries.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks._harness import Row, arguments, report
from benchmarks._labels import constitution_of, draw_groups, engine_config, gold_pairs, nursery, opened, timed
from nursery.grow import Nursery
from solon.constitution.constitution import Constitution
from solon.feedback.config import FeedbackConfig
from solon.feedback.labeler import Labeler, ring_pairs
from solon.feedback.pairwise import combined
from solon.feedback.prompting.swap import SwapConfig
from solon.records import Feedback, Group
from solon.runs.directory import RunDirectory
from solon.runs.tables import label_rows

PARTS = ("rates", "prefix", "bias", "calibration", "faults", "comparisons")
PIPELINE_BATCH = 8
PIPELINE_TOKENS = 100
WRITING = 512
"""Critiques that are written together."""
FAULT_RATES: Any = {
    "timeout": 0.04, "transport_error": 0.04, "garbage": 0.03, "nan": 0.03, "low_mass": 0.03, "refusal": 0.03
}  # fmt: skip
"""A fifth of the verdicts."""


# -- rates -----------------------------------------------------------------------------------------------------


async def rate_rows(grown: Nursery, constitution: Constitution, *, quick: bool) -> list[Row]:
    """Labels a second through the full path, against the bare engine and the pipeline loop."""
    rounds, size = (1, 60) if quick else (5, 250)
    async with opened(grown.judge, constitution) as judge:
        bare = BareEngine(grown)
        ours, theirs = [], []
        labeler = Labeler(judge, config=FeedbackConfig(template="compact"), constitution=constitution)
        with tempfile.TemporaryDirectory() as folder:
            directory = RunDirectory.create(folder, "bench", default="bench")
            for number in range(rounds + 1):
                groups = draw_groups(size, size=4, seed=number)
                questions = questions_of(judge, groups, constitution)
                first_is_bare = number % 2 == 0
                if first_is_bare:
                    theirs.append(len(questions) / bare.seconds(questions))
                found, seconds = await timed(label_and_record(labeler, groups, directory))
                ours.append(sum(len(f.labels) for f in found) / seconds)
                if not first_is_bare:
                    theirs.append(len(questions) / bare.seconds(questions))
            directory.close()
        bare.close()
        written = await written_rate(grown, constitution, quick=quick)
        prompts = questions_of(judge, draw_groups(8, size=4, seed=99), constitution)
        texts = [judge.runner.tokenizer.hf.decode(list(ids)) for ids, _ in prompts][: 16 if quick else 64]
    # The first round warms up both sides.
    ratios = [o / t for o, t in zip(ours[1:], theirs[1:], strict=True)]
    long = pipeline_rate(grown, texts, max_new_tokens=PIPELINE_TOKENS)
    short = pipeline_rate(grown, texts, max_new_tokens=1)
    rate, bare_rate = statistics.median(ours[1:]), statistics.median(theirs[1:])
    return [
        Row("labels/s with cache, parse, record; bare engine's offline generate", rate, bare_rate),
        Row("the same, median of the rounds' ratios", statistics.median(ratios), goal=">= 0.97"),
        Row("one-token verdicts/s; pipeline loop, batch 8, 100 new tokens", rate, long),
        Row("ratio of the two", rate / long, goal=">= 50"),
        Row("ratio of the two, one token each; pipeline verdicts/s", rate / short, short),
        Row("verdicts/s behind 100 written tokens; pipeline loop, 100 new tokens", written, long),
        Row("ratio of the two (equal output length)", written / long, goal=">= 5"),
    ]


def questions_of(judge: Any, groups: Sequence[Group], constitution: Constitution) -> list[tuple[tuple[int, ...], Any]]:
    """The token ids of the questions about these groups, in the same order."""
    return [
        (judge.prompts.pointwise(group.prompt.messages, rollout.text, asked.question), judge.prompts.bool_ids)
        for group in groups
        for rollout in group.rollouts
        for asked in constitution.questions_for("pointwise", group.prompt)
    ]


async def label_and_record(labeler: Labeler, groups: Sequence[Group], directory: RunDirectory) -> list[Feedback]:
    """Like a run: label, make rows, write them."""
    found = await asyncio.gather(*(labeler.label(group) for group in groups))
    directory.write_rows("labels", [row for f in found for row in label_rows(f, {"run_id": "bench"})])
    return found


async def written_rate(grown: Nursery, constitution: Constitution, *, quick: bool) -> float:
    """Verdicts a second when the judge is forced to generate as many tokens first as the pipeline does."""
    wide = {"max_running": WRITING, "kv_cache_gib": 1.0}
    async with opened(
        grown.judge, constitution, engine=wide, critique_tokens=PIPELINE_TOKENS, batch_questions=WRITING
    ) as judge:
        parameters = judge.runner._engine._parameters
        parameters.options["ignore_eos"], parameters.stops = True, ()
        parameters.clear()  # the warm-up's
        groups = draw_groups(16 if quick else 64, size=4, seed=98)
        labeler = Labeler(judge, config=FeedbackConfig(template="compact"), constitution=constitution)
        found, seconds = await timed(asyncio.gather(*(labeler.label(group) for group in groups)))
    labels = [label for feedback in found for label in feedback.labels if not label.verdict.cache_hits]
    assert all(label.verdict.output_tokens == PIPELINE_TOKENS for label in labels), "a judge stopped early"
    return len(labels) / seconds


class BareEngine:
    """vLLM's own offline entry point on the same model: token ids in, log-probs of two tokens out."""

    def __init__(self, grown: Nursery) -> None:
        from vllm import LLM

        from solon.engines import vllm_build
        from solon.engines.vllm_cpu_int8 import int8_takes_float32

        config = engine_config(grown.judge)
        vllm_build.prepare_process(config)
        keys = (
            "model",
            "dtype",
            "max_model_len",
            "max_num_seqs",
            "enforce_eager",
            "block_size",
            "kv_cache_memory_bytes",
        )
        settings = vllm_build._arguments(config, on_cpu=True)
        chosen = {key: settings[key] for key in (*keys, "max_num_batched_tokens") if key in settings}
        # The kernel of the judge's engine: on a processor with tiles vLLM's default does not support float32.
        with int8_takes_float32(str(chosen["dtype"])):
            self._llm = LLM(**chosen, enable_prefix_caching=True, disable_log_stats=True)

    def seconds(self, questions: Sequence[tuple[tuple[int, ...], tuple[int, int]]]) -> float:
        """To answer them all in one call."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
        parameters.logprob_token_ids = list(questions[0][1])
        prompts = [{"prompt_token_ids": list(ids)} for ids, _ in questions]
        start = time.perf_counter()
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - start
        assert all(output.outputs[0].logprobs for output in outputs)
        return seconds

    def close(self) -> None:
        from solon.engines.vllm_build import stop_vllm

        stop_vllm(self._llm.llm_engine)


def pipeline_rate(grown: Nursery, texts: Sequence[str], *, max_new_tokens: int) -> float:
    """Labels a second of the usual tutorial code: a Transformers pipeline, batch 8, the verdict parsed from text."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(grown.judge_fp, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(grown.judge_fp)
    # A tiny judge ends its turn early; real ones continue, and so must this one for a fair comparison.
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=PIPELINE_BATCH)
    settings = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens, "do_sample": False}
    generate(list(texts[:PIPELINE_BATCH]), **settings)
    start = time.perf_counter()
    outputs = generate(list(texts), return_full_text=False, **settings)
    verdicts = ["yes" in output[0]["generated_text"].split()[:1] for output in outputs]
    return len(verdicts) / (time.perf_counter() - start)


# -- the prefix cache ------------------------------------------------------------------------------------------


async def prefix_rows(grown: Nursery, constitution: Constitution, *, quick: bool) -> list[Row]:
    """Share of the prompt tokens that the prefix cache serves: pairs of groups of eight, every principle."""
    rows = []
    for orders, comparisons in (("both", 7), ("adaptive", 7), ("adaptive", 2)):
        async with opened(grown.judge, constitution, task="pairwise", swap=SwapConfig(orders=orders)) as judge:
            config = FeedbackConfig(template="compact", task="pairwise", comparisons=comparisons)
            labeler = Labeler(judge, config=config, constitution=constitution)
            found = await asyncio.gather(*(labeler.label(g) for g in draw_groups(4 if quick else 24, size=8, seed=7)))
        labels = [label for f in found for label in f.labels]
        share = sum(label.verdict.cached_tokens for label in labels) / sum(
            label.verdict.prompt_tokens for label in labels
        )
        name = f"prompt tokens from the prefix cache, groups of 8, {comparisons} neighbours, {orders}"
        rows.append(Row(name, share, goal=">= 0.65" if (orders, comparisons) == ("both", 7) else ""))
    return rows


# -- bias ------------------------------------------------------------------------------------------------------


async def bias_rows(grown: Nursery, constitution: Constitution, *, quick: bool) -> list[Row]:
    """Cost of removing position bias, and the bias that remains."""
    pairs = gold_pairs(600 if quick else 3000, constitution, seed=3)
    items = [pair.item for pair in pairs]
    turned_around = [dataclasses.replace(item, answers=item.answers[::-1]) for item in items]
    found = {}
    for orders in ("both", "adaptive"):
        async with opened(grown.judge, constitution, task="pairwise", swap=SwapConfig(orders=orders)) as judge:
            verdicts = await judge.judge([*items, *turned_around])
            found[orders] = verdicts[: len(items)], verdicts[len(items) :], judge.asked_twice
    both, _, _ = found["both"]
    adaptive, mirrored, asked_twice = found["adaptive"]
    one_order = sum(v.prompt_tokens for v in both) / 2
    gap = max(abs(a.margin + b.margin) for a, b in zip(adaptive, mirrored, strict=True) if a.status.valid)
    right = [agreement(verdicts, pairs) for verdicts in (adaptive, both)]
    coverage, consistency = consistency_at(both, coverage=0.8)
    return [
        Row("prompt tokens to remove position bias; one order", sum(v.prompt_tokens for v in adaptive), one_order),
        Row("ratio of the two", sum(v.prompt_tokens for v in adaptive) / one_order, goal="<= 1.5"),
        Row("share of the pairs asked in both orders", asked_twice),
        Row("agreement with the oracle, adaptive; both orders", *right),
        Row("same sign as with both orders", same_sign(adaptive, both)),
        Row("largest |margin(x, y) + margin(y, x)|, nats", gap, goal="<= 1e-6"),
        Row(f"hard labels on which both orders agree, at {coverage:.0%} coverage", consistency, goal=">= 0.99"),
        Row("the same at full coverage", consistency_at(both, coverage=1.0)[1]),
    ]


def agreement(verdicts: Sequence[Any], pairs: Sequence[Any]) -> float:
    """Share of the verdicts with the oracle's sign."""
    right = [(v.margin or 0.0) * (pair.gold - 0.5) > 0 for v, pair in zip(verdicts, pairs, strict=True)]
    return sum(right) / len(right)


def same_sign(one: Sequence[Any], other: Sequence[Any]) -> float:
    pairs = [(a.margin, b.margin) for a, b in zip(one, other, strict=True) if a.status.valid and b.status.valid]
    return sum(a * b > 0 for a, b in pairs) / len(pairs)


def consistency_at(verdicts: Sequence[Any], *, coverage: float) -> tuple[float, float]:
    """(coverage, share on which both orders agree) of the hard labels, taken in order of confidence."""
    asked = sorted((v for v in verdicts if v.consistent is not None), key=lambda v: -abs(v.margin or 0.0))
    kept = asked[: math.ceil(coverage * len(verdicts))]
    return len(kept) / len(verdicts), sum(v.consistent for v in kept) / len(kept)


# -- calibration -----------------------------------------------------------------------------------------------


async def calibration_rows(grown: Nursery, constitution: Constitution, *, quick: bool) -> list[Row]:
    """Expected calibration error on pairs that the calibration has not seen."""
    import numpy as np

    from solon.feedback.quality.calibration import calibrate, fit
    from solon.feedback.quality.metrics import ece, ece_floor

    number = 800 if quick else 2500
    pairs = gold_pairs(2 * number, constitution, seed=11)
    async with opened(grown.judge, constitution, task="pairwise") as judge:
        verdicts = await judge.judge([pair.item for pair in pairs])
    raw = np.array([v.raw_margin if v.raw_margin is not None else np.nan for v in verdicts])
    gold = np.array([pair.gold for pair in pairs])
    assert np.isfinite(raw).all(), "the nursery's judge left a question open"
    scale = fit(raw[:number], gold[:number], fit_bias=False)
    unseen, truth = raw[number:], gold[number:]
    before, after = (
        ece(margins, truth, folded=True).interval(np.random.default_rng(0)) for margins in (unseen, scale(unseen))
    )
    whole = calibrate("pairwise", raw, gold, rng=np.random.default_rng(0))
    return [
        Row(f"expected calibration error, {number} unseen pairs, calibrated; raw", after.value, before.value),
        Row("the same, calibrated", after.value, goal="<= 0.03"),
        Row("upper end of its 95 % interval", after.high),
        Row("what a perfectly calibrated judge would show (noise floor)", ece_floor(scale(unseen), folded=True)),
        Row(f"cross-validated over all {2 * number} pairs", whole.after.ece.value, whole.before.ece.value),
        Row("temperature", scale.temperature),
    ]


# -- faults ----------------------------------------------------------------------------------------------------


async def fault_rows(grown: Nursery, constitution: Constitution, *, quick: bool) -> list[Row]:
    """A fifth of the judge's answers fail: which become numbers, and whether the others' advantages change."""
    from learners.policy_gradient.advantages import GroupRelative
    from solon.feedback.trials.faults import FaultyJudge

    groups = draw_groups(20 if quick else 120, size=8, seed=5)
    config = FeedbackConfig(template="compact")
    async with opened(grown.judge, constitution) as judge:
        sound = Labeler(judge, config=config, constitution=constitution)
        truth = [await sound.label(group) for group in groups]
        faulty = Labeler(FaultyJudge(judge, FAULT_RATES, seed=1), config=config, constitution=constitution)
        found = [await faulty.label(group) for group in groups]
    labels = [label for feedback in found for label in feedback.labels]
    numbers = sum(label.margin is not None for label in labels if not label.status.valid)
    numbers += sum(label.margin is not None and not math.isfinite(label.margin) for label in labels)
    numbers += sum(
        reward is not None
        for feedback in found
        for index, reward in enumerate(feedback.rewards_G)
        if any(label.rollouts == (index,) and not label.status.valid for label in feedback.labels)
    )
    advantages = GroupRelative()
    moved = 0.0
    for with_faults, without in zip(found, truth, strict=True):
        valid = [r is not None for r in with_faults.rewards_G]
        kept = advantages([r if ok else None for r, ok in zip(without.rewards_G, valid, strict=True)])
        got = advantages(list(with_faults.rewards_G))
        pairs = [(a, b) for a, b in zip(got, kept, strict=True) if a is not None and b is not None]
        if pairs:
            moved = max(moved, abs(statistics.fmean(a for a, _ in pairs) - statistics.fmean(b for _, b in pairs)))
    return [
        Row("share of the labels without a verdict", sum(not label.status.valid for label in labels) / len(labels)),
        Row("invalid verdicts that became a number", numbers, goal="<= 0"),
        Row("largest move of a group's mean advantage over its valid rows", moved, goal="<= 1e-6"),
    ]


# -- comparisons -----------------------------------------------------------------------------------------------


async def comparison_rows(_: Nursery, __: Constitution, *, quick: bool) -> list[Row]:
    """How well rewards from comparisons order a group, simulated: eight answers, normal with spread 1 nat, margins with
    noise and clipped to 3 nats."""
    rows = []
    for comparisons in (1, 2, 7):
        for noise in (0.0, 0.5, 1.0, 2.0):
            options: Any = {"comparisons": comparisons, "noise": noise, "groups": 200 if quick else 2000}
            squares, mean = (order_correlation(method, **options) for method in ("least_squares", "mean"))
            name = f"order of a group of 8, {comparisons} neighbours, noise {noise:g}: least squares; mean"
            rows.append(Row(name, squares, mean))
    return rows


def order_correlation(method: Any, *, comparisons: int, noise: float, groups: int, size: int = 8) -> float:
    """Mean over groups of the correlation of rewards with the truth."""
    rng = np.random.default_rng(0)
    pairs = ring_pairs(size, comparisons)
    found = []
    for _ in range(groups):
        truth = rng.normal(size=size)
        errors = rng.normal(0, noise, len(pairs))
        margins = {
            (i, j): float(np.clip(truth[i] - truth[j] + error, -3, 3))
            for (i, j), error in zip(pairs, errors, strict=True)
        }
        rewards = combined(margins, num_rollouts=size, method=method, ridge=FeedbackConfig().pairwise_ridge)
        found.append(float(np.corrcoef(np.array(rewards, float), truth)[0, 1]))
    return statistics.fmean(found)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    options = parser.parse_args()
    grown = nursery()
    constitution = constitution_of(grown)
    measure = {
        "rates": rate_rows,
        "prefix": prefix_rows,
        "bias": bias_rows,
        "calibration": calibration_rows,
        "faults": fault_rows,
        "comparisons": comparison_rows,
    }
    rows: list[Row] = []
    for part in options.only.split(","):
        rows += asyncio.run(measure[part](grown, constitution, quick=options.quick))
    report("feedback", rows, options.json)


if __name__ == "__main__":
    main()
