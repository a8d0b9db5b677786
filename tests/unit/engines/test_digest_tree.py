"""The digest tree: what changes a leaf, what changes the root, and what a mismatch says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from solon.engines import digest_tree
from solon.engines.chunks import packed
from solon.engines.digest_tree import leaf_digest, root_of, verify
from solon.errors import AttestationError

TENSORS = {f"layers.{n}.proj.weight": torch.full((8, 8), float(n)) for n in range(6)}


def test_a_leaf_is_the_xxh3_digest_of_name_dtype_shape_and_bytes():
    import xxhash

    data = np.arange(6, dtype=np.uint8)
    digest = leaf_digest("w", "uint8", (2, 3), data)
    assert digest == xxhash.xxh3_128(b"w uint8 (2, 3)\n" + bytes(range(6))).hexdigest()
    others = {
        leaf_digest("v", "uint8", (2, 3), data),
        leaf_digest("w", "int8", (2, 3), data),
        leaf_digest("w", "uint8", (3, 2), data),
        leaf_digest("w", "uint8", (2, 3), data[::-1].copy()),
    }
    assert len(others | {digest}) == 5


def test_one_changed_bit_anywhere_changes_the_root():
    data = np.zeros(1 << 16, np.uint8)
    seen = {root_of(packed(1, {"w": torch.from_numpy(data)}.items()).leaves)}
    for place in (0, 1023, 1024, 40_000, (1 << 16) - 1):
        changed = data.copy()
        changed[place] ^= 1
        seen.add(root_of(packed(1, {"w": torch.from_numpy(changed)}.items()).leaves))
    assert len(seen) == 6


def test_the_root_does_not_depend_on_order_or_chunks():
    whole, cut = packed(1, TENSORS.items()), packed(1, reversed(TENSORS.items()), bound=1)
    assert (len(whole.chunks), len(cut.chunks)) == (1, 6)
    assert whole.fingerprint == cut.fingerprint


@pytest.mark.parametrize("threaded", [False, True])
def test_a_mismatch_names_its_tensor(monkeypatch: pytest.MonkeyPatch, threaded: bool):
    monkeypatch.setattr(digest_tree, "_THREADED_BYTES", 0 if threaded else 1 << 60)
    weights = packed(3, TENSORS.items(), bound=600)
    verify(weights, "rollout-0")
    chunks = [list(chunk) for chunk in weights.chunks]
    damaged = chunks[2][0].copy()
    damaged[100] ^= 4
    chunks[2][0] = damaged
    with pytest.raises(AttestationError, match=r"engine rollout-0 .* 3, .*1 tensors in chunk 2 .*\(layers\.4\.proj"):
        verify(replace(weights, chunks=tuple(map(tuple, chunks))), "rollout-0")


def test_a_changed_manifest_and_a_missing_chunk_are_found():
    weights = packed(3, TENSORS.items(), bound=600)
    with pytest.raises(AttestationError, match="the manifest changed on its way"):
        verify(replace(weights, leaves=weights.leaves[:-1]), "rollout-0")
    with pytest.raises(AttestationError, match=r"without 2 of its tensors \(layers\.4"):
        verify(replace(weights, chunks=weights.chunks[:-1]), "rollout-0")
    with pytest.raises(AttestationError, match="2 tensors in chunk 0"):
        verify(replace(weights, chunks=(weights.chunks[0][:1], *weights.chunks[1:])), "rollout-0")
