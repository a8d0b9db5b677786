"""Weight payloads: written with one copy, in the bytes of safetensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save

from solon.engines.fake import FakeEngine, fake_weights
from solon.engines.payload import fingerprint, named_tensors, pack
from solon.engines.runner import load_and_report
from solon.records import WeightCheck, Weights

DTYPES = ("float32", "float64", "bfloat16", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")


def test_a_packed_payload_has_the_bytes_that_safetensors_writes():
    tensors = {
        f"{number}.{name}": (3 * torch.randn(3, 5)).to(getattr(torch, name)) for number, name in enumerate(DTYPES)
    }
    tensors |= {"empty": torch.empty(0, 4), "one": torch.tensor(3.0), 'a "name"': torch.ones(2)}
    assert pack(tensors).tobytes() == save(tensors, {"format": "pt"})


def test_a_tensor_in_another_memory_order_is_packed_by_its_values():
    matrix = torch.arange(6.0).reshape(2, 3)
    payload = pack({"w": matrix.T})
    weights = Weights(
        version=1, payload=payload, fingerprint=fingerprint(payload), canary_token_ids=(), canary_logprobs=()
    )
    assert torch.equal(dict(named_tensors(weights))["w"], matrix.T)


def test_one_changed_bit_anywhere_changes_the_fingerprint():
    payload = np.zeros(1 << 16, np.uint8)
    seen = {fingerprint(payload)}
    for place in (0, 1023, 1024, 40_000, (1 << 16) - 1):
        changed = payload.copy()
        changed[place] ^= 1
        seen.add(fingerprint(changed))
    assert len(seen) == 6


class Comparing(FakeEngine):
    """Compares its tensors, as real engines do."""

    sums = 0

    def check_weights(self, weights: Weights) -> WeightCheck:
        return replace(super().check_weights(weights), compared=3)

    def checksum(self) -> str:
        self.sums += 1
        return super().checksum()


def test_live_weights_are_summed_up_only_where_no_tensor_was_compared():
    comparing, plain = Comparing(), FakeEngine()
    assert load_and_report(comparing, fake_weights(1)).checksum == ""
    assert comparing.sums == 0
    assert load_and_report(plain, fake_weights(1)).checksum == plain.checksum()
