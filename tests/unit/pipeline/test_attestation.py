from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from solon.errors import AttestationError
from solon.pipeline.attestation import NOISE_RATIO, Gap, attest, canary_gap
from solon.records import WeightCheck, Weights
from tests.unit.fakes import make_weights
from tests.unit.pipeline.test_publication import make_receipt

CANARIES, TOKENS = 4, 11


@pytest.mark.parametrize(
    ("changes", "words"), [({"version": 3}, "reports version 3"), ({"fingerprint": "x"}, "other bytes")]
)
def test_a_receipt_for_something_else_is_refused(changes: dict[str, Any], words: str):
    manifest = make_weights(4)
    with pytest.raises(AttestationError, match=words):
        attest(manifest, make_receipt(manifest, **changes), last_checksum=None)


@pytest.mark.parametrize(
    ("ours", "theirs", "gap"),
    [
        ([[-1.0, -2.0], [-3.0]], [[-1.0, -2.5], [-3.25]], 0.5),
        ([[-1.0], []], [[-1.0], []], 0.0),
        ([[-1.0], [-1.0]], [[-1.1], [math.nan]], math.inf),
        ([[-1.0], [-1.0]], [[math.nan], [-1.1]], math.inf),
        ([[math.nan]], [[math.nan]], math.inf),
        ([[-math.inf]], [[-math.inf]], math.inf),
        ([[-1.0]], [[math.inf]], math.inf),
        ([[-1.0, -1.0]], [[-1.0]], math.inf),
        ([[-1.0]], [[-1.0], [-1.0]], math.inf),
        ([], [], math.inf),
        ([[]], [[]], math.inf),
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_canary_gap_is_infinite_unless_all_was_compared(ours: Any, theirs: Any, gap: float):
    assert canary_gap(ours, theirs).max == gap


def in_16_bits(
    noise: np.ndarray, theirs: np.ndarray, truth: np.ndarray, *, compared: int = 3, unknown: tuple[str, ...] = ()
) -> tuple[Weights, Any]:
    """A version whose learner is off by `noise` in 16 bits, and the receipt of an engine that computes `theirs`."""
    from dataclasses import replace

    rows = tuple(tuple(row) for row in truth.tolist())
    manifest = replace(make_weights(1), canary_logprobs=rows, canary_noise=float(np.abs(noise).mean()))
    check = WeightCheck(dtype="bfloat16", compared=compared, unknown=unknown)
    receipt = make_receipt(manifest, canary_logprobs=tuple(tuple(row) for row in theirs.tolist()), check=check)
    return manifest, receipt


def test_rounding_in_16_bits_is_no_error_in_10_000_publications_although_it_exceeds_a_quarter_nat():
    # As measured on SmolLM2: mean 0.1 nats, single tokens up to a nat, some sequences noisier than others for both.
    rng = np.random.default_rng(0)
    truth = rng.normal(-15, 3, (CANARIES, TOKENS))
    above = 0
    for _ in range(10_000):
        scale = 0.1 * rng.lognormal(0, 0.3, (CANARIES, 1))
        ours, theirs = rng.laplace(0, scale, (2, CANARIES, TOKENS))
        receipt = attest(*in_16_bits(ours, truth + theirs, truth), last_checksum=None)
        above += receipt.max_gap > 0.25
    assert above > 5000


def test_an_engine_that_computes_another_function_in_16_bits_is_found_by_its_mean_gap():
    rng = np.random.default_rng(0)
    truth = rng.normal(-15, 3, (CANARIES, TOKENS))
    noise, theirs = rng.laplace(0, 0.1, (2, CANARIES, TOKENS))
    theirs += rng.normal(0, 0.6, truth.shape)
    with pytest.raises(
        AttestationError, match=r"mean canary gap.*noise_ratio = 3.*bfloat16.*computes another function"
    ):
        attest(*in_16_bits(noise, truth + theirs, truth), last_checksum=None)
    with pytest.raises(AttestationError, match=r"unknown layout may be stale \(layers.0.experts\)"):
        attest(*in_16_bits(noise, truth + theirs, truth, unknown=("layers.0.experts",)), last_checksum=None)
    with pytest.raises(AttestationError, match="some layer may still hold old weights"):
        attest(*in_16_bits(noise, truth + theirs, truth, compared=0), last_checksum=None)


def test_the_tolerance_follows_from_the_engines_actual_dtype_and_not_from_the_settings():
    truth = np.full((CANARIES, TOKENS), -2.0)
    manifest, receipt = in_16_bits(np.full(truth.shape, 0.01), truth + 0.02, truth)
    assert attest(manifest, receipt, last_checksum=None).mean_gap == pytest.approx(0.02)
    exact = make_receipt(
        manifest, canary_logprobs=receipt.canary_logprobs, check=WeightCheck(dtype="float32", compared=3)
    )
    with pytest.raises(AttestationError, match=r"2\.00e-02 nats, tolerated 2\.00e-03 \(float32\)"):
        attest(manifest, exact, last_checksum=None)


def test_a_tolerance_that_was_set_is_the_largest_gap_in_every_dtype():
    truth = np.full((CANARIES, TOKENS), -2.0)
    manifest, receipt = in_16_bits(np.full(truth.shape, 1e-6), truth + 0.02, truth)
    assert attest(manifest, receipt, last_checksum=None, tolerance=0.03).max_gap == pytest.approx(0.02)
    with pytest.raises(AttestationError, match=r"tolerated 1\.00e-02 \(publish.logprob_tolerance\)"):
        attest(manifest, receipt, last_checksum=None, tolerance=0.01)


def test_a_model_without_any_rounding_noise_is_held_to_the_tolerance_of_float32():
    truth = np.full((CANARIES, TOKENS), -2.0)
    assert attest(*in_16_bits(np.zeros(truth.shape), truth + 1e-3, truth), last_checksum=None)
    with pytest.raises(AttestationError, match=r"tolerated 2\.00e-03"):
        attest(*in_16_bits(np.zeros(truth.shape), truth + 3e-3, truth), last_checksum=None)


@pytest.mark.parametrize(
    ("stale", "words"),
    [
        (("model.norm.weight",), r"1 of the 9 live tensors.*\(model\.norm\.weight\); loading skipped them"),
        (
            ("lm_head.weight (packed copy)",),
            r"1 of the 9 live tensors.*lm_head.*packed copies were not rebuilt",
        ),
        (("a", "b", "c", "d"), r"4 of the 9 live tensors.*\(a, b, c, …\)"),
    ],
)
def test_a_stale_tensor_is_named_even_if_the_canaries_agree(stale: tuple[str, ...], words: str):
    manifest = make_weights(1)
    receipt = make_receipt(manifest, check=WeightCheck(dtype="bfloat16", compared=8, unknown=("x",), stale=stale))
    with pytest.raises(AttestationError, match=rf"rollout-0 after publishing version 1: {words}"):
        attest(manifest, receipt, last_checksum=None)


def test_tensors_left_uncompared_are_no_success():
    manifest = make_weights(1)
    check = WeightCheck(
        dtype="bfloat16", compared=7, unknown=("w13", "h.0.ln_1.weight"), uncompared=("h.0.ln_1.weight",)
    )
    with pytest.raises(
        AttestationError, match=r"1 of the 9 live tensors.*not compared \(h\.0\.ln_1\.weight\).*save_pretrained"
    ):
        attest(manifest, make_receipt(manifest, check=check), last_checksum=None)
    passes = WeightCheck(dtype="bfloat16", compared=7, unknown=("w13",))
    assert attest(manifest, make_receipt(manifest, check=passes), last_checksum=None)


def test_an_engine_that_compares_tensors_and_compared_none_is_refused_with_the_reason():
    manifest = make_weights(1)
    receipt = make_receipt(manifest, check=WeightCheck(dtype="bfloat16", unknown=("a", "b", "c", "d")))
    with pytest.raises(
        AttestationError, match=r"none of the 4 live tensors.*\(a, b, c, …\).*not understood; use backend"
    ):
        attest(manifest, receipt, last_checksum=None)


def test_the_checksum_is_judged_only_where_tensors_cannot_be_compared():
    manifest = make_weights(1)
    seen = make_receipt(manifest, checksum="same", check=WeightCheck(compared=8))
    assert attest(manifest, seen, last_checksum="same")
    with pytest.raises(AttestationError, match="live parameters did not change"):
        attest(manifest, make_receipt(manifest, checksum="same"), last_checksum="same")


def test_gaps_are_absolute_differences():
    assert canary_gap([[-1.0, -2.0]], [[-1.5, -2.25]]) == Gap(0.5, 0.375)
    assert math.isinf(canary_gap([[]], [[]]).mean)
    assert NOISE_RATIO == 3


def of_quantised(gap: float, **rest: Any) -> float:
    """The mean gap with which an engine over quantised weights is attested."""
    manifest = make_weights(4)
    moved = tuple(tuple(value + gap for value in row) for row in manifest.canary_logprobs)
    receipt = make_receipt(manifest, canary_logprobs=moved, check=WeightCheck(compared=3, quantised=True))
    return attest(manifest, receipt, last_checksum=None, **rest).mean_gap


def test_over_quantised_weights_the_first_version_sets_what_is_tolerated_later():
    assert of_quantised(0.2) == pytest.approx(0.2)
    assert of_quantised(0.25, quantised_gap=0.1) == pytest.approx(0.25)
    with pytest.raises(AttestationError, match=r"3\.50e-01 nats over quantised weights, tolerated 3\.00"):
        of_quantised(0.35, quantised_gap=0.1)
    with pytest.raises(AttestationError, match=r"tolerated 1\.00"):
        of_quantised(1.5)
    with pytest.raises(AttestationError, match="logprob_tolerance"):
        of_quantised(0.2, tolerance=0.1)
