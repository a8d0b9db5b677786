"""Chunks of weights: where a stream of tensors is cut, and what is read again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from solon.engines.chunks import SentTensors, cut, named_tensors, packed
from solon.errors import AttestationError
from solon.records import Chunk, Leaf

DTYPES = ("float32", "float64", "bfloat16", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")


def decoder(layers: int = 3, width: int = 8) -> dict[str, torch.Tensor]:
    """The names of a Llama; a layer has 4 x width^2 elements of attention, 3 x width^2 of its network."""
    attention = [f"self_attn.{part}_proj.weight" for part in "qkvo"]
    network = [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    names = [f"model.layers.{n}.{part}" for n in range(layers) for part in (*attention, *network)]
    return {name: torch.randn(width, width) for name in ("model.embed_tokens.weight", *names)}


def exhausted(cutting: Any) -> tuple[list[Chunk], tuple[Leaf, ...]]:
    chunks = []
    while True:
        try:
            chunks.append(next(cutting))
        except StopIteration as end:
            return chunks, end.value


def test_every_dtype_and_shape_comes_back_bit_by_bit():
    tensors = {
        f"{number}.{name}": (3 * torch.randn(3, 5)).to(getattr(torch, name)) for number, name in enumerate(DTYPES)
    }
    tensors |= {"empty": torch.empty(0, 4), "one": torch.tensor(3.0), "turned": torch.arange(6.0).reshape(2, 3).T}
    found = dict(named_tensors(packed(1, tensors.items())))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("bound", [1, 3 * 256, 5 * 256, 1 << 20])
def test_chunks_stay_under_the_bound_and_never_part_q_k_v(bound: int):
    chunks, leaves = exhausted(cut(decoder().items(), bound=bound))
    assert [leaf.chunk for leaf in leaves] == sorted(leaf.chunk for leaf in leaves)
    assert max(leaf.chunk for leaf in leaves) + 1 == len(chunks)
    for layer in range(3):
        for parts in (("q", "k", "v"), ("gate", "up")):
            joined = [
                leaf for leaf in leaves if any(f"layers.{layer}." in leaf.name and f".{p}_" in leaf.name for p in parts)
            ]
            assert len({leaf.chunk for leaf in joined}) == 1
    largest = 4 * 256  # the attention of a layer, which may not be cut
    assert all(sum(data.nbytes for data in chunk) <= max(bound, largest) for chunk in chunks)
    if bound == 1 << 20:
        assert len(chunks) == 1


def test_a_source_is_read_one_chunk_ahead_and_its_tensors_are_dropped():
    alive: list[weakref.ref[torch.Tensor]] = []

    def source() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in decoder(layers=20).items():
            made = tensor.bfloat16()
            alive.append(weakref.ref(made))
            yield name, made
            del made

    most = 0
    for _ in cut(source(), bound=4 * 128):
        gc.collect()
        most = max(most, sum(reference() is not None for reference in alive))
    assert most <= 2 * 4 + 1


def test_a_tensor_in_its_own_dtype_is_sent_without_a_copy():
    tensor = torch.ones(4, 4)
    ((data,),) = cut({"w": tensor}.items())
    assert data.ctypes.data == tensor.data_ptr()


def test_a_comparison_keeps_one_chunk_open():
    opened: list[int] = []

    class Counting(tuple):  # type: ignore[type-arg]
        def __getitem__(self, number: Any) -> Any:
            opened.append(number)
            return super().__getitem__(number)

    weights = packed(1, decoder().items(), bound=1)
    sent = SentTensors(_with(weights, Counting(weights.chunks)))
    assert len(sent) == len(weights.leaves)
    assert [torch.equal(sent[name], tensor) for name, tensor in named_tensors(weights)] == [True] * len(sent)
    assert opened == list(range(len(weights.chunks)))


def test_bytes_that_do_not_fit_their_leaf_are_refused():
    weights = packed(1, {"w": torch.ones(4)}.items())
    with pytest.raises(AttestationError, match=r"tensor w came as 3 bytes, expected float32 of shape \(4,\)"):
        list(named_tensors(_with(weights, ((np.zeros(3, np.uint8),),))))


def _with(weights: Any, chunks: Any) -> Any:
    from dataclasses import replace

    return replace(weights, chunks=chunks)
