"""Attestation of published weights in 16 and 32 bits: stale tensors caught, and correct versions wrongly stopped.

    python benchmarks/attestation.py [--quick] [--json PATH]

Real publications by the learner's publisher to real vLLM engines: random models of six architectures, and SmolLM2-135M
from its package. In every draw a small step is published (LoRA or all parameters, learning rate 1e-5) and one of the
tensors that changed in it is reverted. The reference is the earlier rule, in the same run: the largest canary
difference may be 0.25 nats in 16 bits, 2e-3 in float32.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from benchmarks._stale import FAMILIES, PublishedModel, Sent, make_tiny, with_settings
from english.smollm2 import write_smollm2
from solon.engines.live_weights import PACKED
from solon.errors import AttestationError
from solon.pipeline.attestation import FLOAT32_TOLERANCE, NOISE_RATIO, attest, canary_gap
from solon.records import LoadReceipt

SIMULATED = 10_000
CANARIES = 4


@dataclass(slots=True)
class Counts:
    """Results of both rules for honest versions and stale tensors."""

    honest: int = 0
    alarms: int = 0
    old_alarms: int = 0
    stale: int = 0
    caught: int = 0
    old_caught: int = 0
    by_numbers: int = 0
    heads: int = 0
    heads_caught: int = 0
    ratios: list[float] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    checks_s: list[float] = field(default_factory=list)
    largest_gap: float = 0.0


def alarm(sent: Sent, receipt: LoadReceipt) -> bool:
    try:
        attest(sent.weights, receipt, last_checksum=None)
    except AttestationError:
        return True
    return False


def numbers_alarm(sent: Sent, receipt: LoadReceipt) -> bool:
    """Whether the canaries alone would have detected it."""
    gap = canary_gap(sent.weights.canary_logprobs, receipt.canary_logprobs)
    return gap.mean > max(FLOAT32_TOLERANCE, NOISE_RATIO * sent.weights.canary_noise)


def old_alarm(sent: Sent, receipt: LoadReceipt) -> bool:
    if receipt.check.dtype == "float32":
        return canary_gap(sent.weights.canary_logprobs, receipt.canary_logprobs).max > FLOAT32_TOLERANCE
    return sent.old_alarm(receipt)


def campaign(model: PublishedModel, counts: Counts, *, publications: int, draws: int) -> None:
    """Publish so many versions; after each, leave some of its changed tensors stale, one at a time."""
    rng = np.random.default_rng(0)
    judge_honest(model.publish(), counts)
    for number in range(publications):
        before = model.held()
        model.step(number, lora=number % 2 == 0)
        sent = model.publish()
        judge_honest(sent, counts)
        start = time.perf_counter()
        model.engine.check_weights(sent.weights)
        counts.checks_s.append(time.perf_counter() - start)
        now = model.held()
        names = [str(name) for name in rng.permutation(sorted(before))]
        heads = [name for name in names if name.startswith(("lm_head", "embed_out")) and name.endswith(PACKED)]
        done = 0
        for name in dict.fromkeys([*heads, *names] if number % 2 else names):
            if done == draws:
                break
            if model.differ(name, before[name], now[name]):
                judge_stale(model, sent, name, before[name], now[name], counts)
                done += 1


def judge_honest(sent: Sent, counts: Counts) -> None:
    counts.honest += 1
    counts.alarms += alarm(sent, sent.receipt)
    counts.old_alarms += old_alarm(sent, sent.receipt)
    gap = canary_gap(sent.weights.canary_logprobs, sent.receipt.canary_logprobs)
    counts.ratios.append(gap.mean / sent.weights.canary_noise)
    counts.largest_gap = max(counts.largest_gap, gap.max)
    counts.pauses_s.append(sent.receipt.pause_s)


def judge_stale(model: PublishedModel, sent: Sent, name: str, old: Any, new: Any, counts: Counts) -> None:
    model.put(name, old)
    try:
        receipt = model.again(sent)
    finally:
        model.put(name, new)
    caught = alarm(sent, receipt) and name in receipt.check.stale
    is_head = name.startswith(("lm_head", "embed_out"))
    counts.stale += 1
    counts.caught += caught
    counts.old_caught += old_alarm(sent, receipt)
    counts.by_numbers += numbers_alarm(sent, receipt)
    counts.heads += is_head
    counts.heads_caught += is_head and caught


def simulated(noise: list[tuple[Any, Any]]) -> tuple[int, float]:
    """False alarms and the largest ratio in publications resampled from measured noise, canary by canary, equally many
    for every model."""
    rng = np.random.default_rng(1)
    alarms, largest = 0, 0.0
    for served_S, rounded_S in noise:
        drawn = rng.integers(0, len(served_S), (SIMULATED, CANARIES))
        served_N, rounded_N = served_S[drawn].mean(1), rounded_S[drawn].mean(1)
        alarms += int((served_N > np.maximum(FLOAT32_TOLERANCE, NOISE_RATIO * rounded_N)).sum())
        largest = max(largest, float((served_N / rounded_N).max()))
    return alarms, largest


def rows_of(what: str, counts: Counts, *, pause_goal: str = "") -> list[Row]:
    share = counts.stale or 1
    return [
        Row(f"{what}: stale tensors caught and named, share of {counts.stale}", counts.caught / share,
            counts.old_caught / share, ">= 0.99"),
        Row(f"{what}: the same, by the canaries alone", counts.by_numbers / share),
        Row(f"{what}: stale output heads caught, of {counts.heads}", counts.heads_caught / max(1, counts.heads), None,
            ">= 0.99"),
        Row(f"{what}: honest publications stopped, of {counts.honest}", counts.alarms, counts.old_alarms, "<= 0"),
        Row(f"{what}: largest canary gap of an honest publication, nats", counts.largest_gap),
        Row(f"{what}: mean gap over the learner's own noise, median", statistics.median(counts.ratios)),
        Row(f"{what}: mean gap over the learner's own noise, largest", max(counts.ratios), None, f"<= {NOISE_RATIO:g}"),
        Row(f"{what}: pause of a publication, p50, s", statistics.median(counts.pauses_s), None, pause_goal),
        Row(f"{what}: of it comparing tensors, p50, s", statistics.median(counts.checks_s)),
    ]  # fmt: skip


def another_function(path: Path, target: Path, **changes: Any) -> float:
    """Mean gap over the learner's noise of an engine that reads the same weights under another config.json."""
    model = PublishedModel(path, dtype="bfloat16", served=with_settings(path, target, **changes))
    sent = model.publish()
    model.close()
    gc.collect()
    return canary_gap(sent.weights.canary_logprobs, sent.receipt.canary_logprobs).mean / sent.weights.canary_noise


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    import torch

    torch.set_num_threads(1)
    quick = options.quick
    tiny, exact, real = Counts(), Counts(), Counts()
    noise = []
    with tempfile.TemporaryDirectory(prefix="attestation-") as scratch:
        folder = Path(scratch)
        for family in FAMILIES:
            path = make_tiny(folder / family, family)
            model = PublishedModel(path, dtype="bfloat16")
            campaign(model, tiny, publications=4 if quick else 20, draws=6 if quick else 10)
            noise.append(model.noise(50 if quick else 200))
            model.close()
            gc.collect()
        for family in ("llama-tied", "gpt2"):
            model = PublishedModel(folder / family, dtype="float32")
            campaign(model, exact, publications=2 if quick else 10, draws=6 if quick else 10)
            model.close()
        smollm2 = write_smollm2(folder / "smollm2")
        model = PublishedModel(smollm2, dtype="bfloat16")
        campaign(model, real, publications=2 if quick else 10, draws=10)
        noise.append(model.noise(20 if quick else 60))
        model.close()
        gc.collect()
        rope = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
        norms = another_function(smollm2, folder / "norms", rms_norm_eps=0.1)
        rotary = another_function(smollm2, folder / "rotary", **rope)
    alarms, largest = simulated(noise)
    rows = [
        *rows_of(f"{len(FAMILIES)} architectures, bfloat16", tiny, pause_goal="<= 0.3"),
        *rows_of("SmolLM2-135M, bfloat16", real),
        *rows_of("llama-tied and gpt2, float32", exact, pause_goal="<= 0.3"),
        Row(f"simulated publications stopped, of {len(noise)} x {SIMULATED:,}", alarms, None, "<= 0"),
        Row("simulated publications: mean gap over the learner's own noise, largest", largest),
        Row(
            "SmolLM2-135M served with another constant in its norms: mean gap over the learner's own noise",
            norms,
            None,
            f">= {NOISE_RATIO:g}",
        ),
        Row("SmolLM2-135M served with another rotary base: the same, over 12 tokens", rotary),
    ]
    report("attestation", rows, options.json)


if __name__ == "__main__":
    main()
