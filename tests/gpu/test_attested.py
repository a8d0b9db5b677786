"""Canaries and comparison of tensors in bfloat16 on a device: honest versions pass, a stale layer is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks._stale import PublishedModel, make_tiny
from solon.errors import AttestationError
from solon.pipeline.attestation import NOISE_RATIO, attest
from tests.gpu.engines import apart

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SEEDS = 5


def published(path: str) -> dict[str, Any]:
    model = PublishedModel(Path(path), dtype="bfloat16")
    found: dict[str, Any] = {"ratios": [], "stale": {}}
    for seed in range(SEEDS):
        before = model.held()
        model.step(seed, lora=False)
        sent = model.publish()
        receipt = attest(sent.weights, sent.receipt, last_checksum=None)  # raises if it is not honest
        found["ratios"].append(receipt.mean_gap / sent.weights.canary_noise)
        now = model.held()
        for name in sorted(before)[seed::SEEDS]:
            if not model.differ(name, before[name], now[name]):
                continue
            model.put(name, before[name])
            late = model.again(sent)
            model.put(name, now[name])
            try:
                attest(sent.weights, late, last_checksum=None)
            except AttestationError:
                found["stale"][name] = late.check.stale
            else:
                found["stale"][name] = ()
    model.close()
    return found


@pytest.mark.parametrize("family", ["llama-tied", "gpt_neox"])
def test_honest_versions_pass_and_every_stale_tensor_is_named(family: str, tmp_path: Path):
    found = apart(published, str(make_tiny(tmp_path / family, family)))
    print("gaps over rounding noise", [round(ratio, 2) for ratio in found["ratios"]])
    assert max(found["ratios"]) < NOISE_RATIO
    assert len(found["stale"]) > 6
    assert all(name in stale for name, stale in found["stale"].items())
