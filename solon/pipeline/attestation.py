"""Decides whether an engine runs the published weights. Bytes are compared first, since they are exact; then canary
log-probs, which reveal an engine that computes a different function with the right weights.

In float32 learner and engine agree to 1e-4 nats, and the largest canary difference is judged. In 16 bits, rounding
alone moves single log-probs by up to a nat, as much as a stale layer does, and the amount depends on the model. So the
learner computes its canaries twice, in float32 and in 16 bits. Their mean difference is the noise of this model with
these weights, and the mean difference of an honest engine from the float32 values is equally large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from solon.errors import AttestationError
from solon.records import LoadReceipt, Weights

FLOAT32_TOLERANCE = 2e-3
"""Largest canary difference in float32, nats."""
NOISE_RATIO = 3.0
"""Tolerated mean canary difference in 16 bits over the learner's own rounding noise. Over ten architectures, with
200,000 publications resampled from measured differences of each, the largest ratio was 2.5 and the median 0.95;
`benchmarks/attestation.py` repeats the measurement."""


QUANTISED_GAP = 1.0
"""Largest mean canary difference of a first version over quantised weights, nats: those of another model differ by
several."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Absolute differences of canary log-probs, nats."""

    max: float
    mean: float


def attest(
    manifest: Weights,
    receipt: LoadReceipt,
    *,
    last_checksum: str | None,
    tolerance: float = 0.0,
    noise_ratio: float = NOISE_RATIO,
    quantised_gap: float = 0.0,
) -> LoadReceipt:
    """The receipt with its canary gaps. Raises AttestationError when the engine does not run the published weights.

    `last_checksum`: checksum of the engine's previous weights, if they differed; used only if the engine cannot
    compare tensors. `tolerance`: largest gap in nats; 0: the automatic rule. `quantised_gap`: mean gap of the first
    version over the same quantised weights; 0: this is the first.
    """
    who = f"engine {receipt.engine} after publishing version {manifest.version}"
    if receipt.version != manifest.version:
        raise AttestationError(f"{who}: reports version {receipt.version}")
    if receipt.fingerprint != manifest.fingerprint:
        raise AttestationError(f"{who}: received other bytes than the learner sent (fingerprints differ)")
    if receipt.check.stale:
        raise AttestationError(f"{who}: {_stale(receipt)}")
    if uncompared := _uncompared(receipt):
        raise AttestationError(f"{who}: {uncompared}")
    if not receipt.check.compared and receipt.checksum == last_checksum:
        raise AttestationError(f"{who}: its live parameters did not change")
    gap = canary_gap(manifest.canary_logprobs, receipt.canary_logprobs)
    quantised = receipt.check.quantised and not tolerance
    excess = (
        _excess_quantised(gap, quantised_gap, noise_ratio)
        if quantised
        else _excess(manifest, receipt, gap, tolerance, noise_ratio)
    )
    if excess:
        raise AttestationError(
            f"engine {receipt.engine} computes other log-probs than the learner after publishing version "
            f"{manifest.version}: {excess}; {_suspicion(receipt)}"
        )
    return replace(receipt, max_gap=gap.max, mean_gap=gap.mean)


def canary_gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Gap:
    """Absolute differences; infinite when shapes differ, nothing is compared or a value is not finite."""
    infinite = Gap(float("inf"), float("inf"))
    if [len(row) for row in ours] != [len(row) for row in theirs] or not any(ours):
        return infinite
    ours_N, theirs_N = (np.concatenate([np.asarray(row, np.float64) for row in rows]) for rows in (ours, theirs))
    if not (np.isfinite(ours_N).all() and np.isfinite(theirs_N).all()):
        return infinite
    gap_N = np.abs(ours_N - theirs_N)
    return Gap(float(gap_N.max()), float(gap_N.mean()))


def _excess(manifest: Weights, receipt: LoadReceipt, gap: Gap, tolerance: float, noise_ratio: float) -> str:
    """A description of how far the gap exceeds the limit; empty when it does not."""
    dtype = receipt.check.dtype
    if tolerance or dtype == "float32":
        allowed = tolerance or FLOAT32_TOLERANCE
        how = "publish.logprob_tolerance" if tolerance else "float32"
        return "" if gap.max <= allowed else f"largest canary gap {gap.max:.2e} nats, tolerated {allowed:.2e} ({how})"
    allowed = max(FLOAT32_TOLERANCE, noise_ratio * manifest.canary_noise)
    if gap.mean <= allowed:
        return ""
    return (
        f"mean canary gap {gap.mean:.2e} nats, tolerated {allowed:.2e}: publish.noise_ratio = {noise_ratio:g} times "
        f"the {manifest.canary_noise:.2e} that 16 bits alone explain (it computes in {dtype})"
    )


def _excess_quantised(gap: Gap, first: float, noise_ratio: float) -> str:
    """Quantisation moves log-probs by far more than rounding, and by about the same amount for every version."""
    allowed = noise_ratio * first if first else QUANTISED_GAP
    if gap.mean <= allowed:
        return ""
    how = f"publish.noise_ratio = {noise_ratio:g} times that of the first version" if first else "of a first version"
    return f"mean canary gap {gap.mean:.2e} nats over quantised weights, tolerated {allowed:.2e} ({how})"


def _stale(receipt: LoadReceipt) -> str:
    check = receipt.check
    total = check.compared + len(check.unknown)
    cause = (
        "its packed copies were not rebuilt"
        if all("packed" in name for name in check.stale)
        else "loading skipped them"
    )
    return (
        f"{len(check.stale)} of the {total} live tensors differ from the published weights "
        f"({_few(check.stale)}); {cause}"
    )


def _uncompared(receipt: LoadReceipt) -> str:
    """Why an engine that can compare tensors could not confirm the weights by bytes; empty when it could."""
    check = receipt.check
    total = check.compared + len(check.unknown)
    if check.uncompared:
        return (
            f"{len(check.uncompared)} of the {total} live tensors were not compared "
            f"({_few(check.uncompared)}): the payload lacks the names that they have in the engine's "
            "checkpoint; write the checkpoint again with save_pretrained, so that it has the names of Transformers"
        )
    if check.unknown and not check.compared:
        return (
            f"none of the {total} live tensors could be compared ({_few(check.unknown)}): how they "
            'are made of the tensors in its checkpoint is not understood; use backend = "transformers"'
        )
    return ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _suspicion(receipt: LoadReceipt) -> str:
    check = receipt.check
    if not check.compared:
        return "some layer may still hold old weights"
    if check.unknown:
        return f"tensors of an unknown layout may be stale ({_few(check.unknown)}), or it computes another function"
    return (
        "every tensor equals the published one, so it computes another function: compare how both read the model's "
        "config.json (attention window, rotary settings, soft caps), and the versions of their libraries"
    )
