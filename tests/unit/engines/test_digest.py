from __future__ import annotations

import hashlib
import tracemalloc
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from solon.engines import digest
from solon.engines.digest import digest_tensors

MIB = 1 << 20


def digest_in_one_piece(name: str, tensor: torch.Tensor) -> str:
    """The definition, with as many copies as it takes."""
    found = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    tensor = tensor.contiguous()
    if tensor.numel() > MIB and tensor.ndim > 1:
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        bits = tensor.view(integer).reshape(tensor.shape[0], -1)
        tensor = torch.cat([bits.sum(0, dtype=torch.int64), bits.sum(1, dtype=torch.int64)])
    found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


TENSORS = {
    "small": torch.randn(30, 20),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "long": torch.randn(3 * MIB + 7),
    "wide": torch.randn(2, 2 * MIB + 3),
    "tall": torch.randn(MIB + 5, 3),
    "bfloat16": torch.randn(1500, 1501).to(torch.bfloat16),
    "int8": torch.randint(-128, 128, (1100, 1200), dtype=torch.int8),
    "three axes": torch.randn(70, 150, 150),
    "transposed": torch.randn(1500, 1200).T,
}


@pytest.mark.parametrize("name", TENSORS)
def test_the_digest_in_chunks_is_the_digest_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch):
    tensor = TENSORS[name]
    assert digest_tensors([(name, tensor)]) == digest_in_one_piece(name, tensor)
    monkeypatch.setattr(digest, "_CHUNK_ELEMENTS", 65_537)
    assert digest_tensors([(name, tensor)]) == digest_in_one_piece(name, tensor)


ONE_OR_NONE = {
    "a column of one row": torch.randn(1, 3)[:, 0],
    "a column of one row, widened": torch.randn(1, 3).T[:1].T,
    "one element of a strided vector": torch.randn(9)[::9],
    "no element of a strided matrix": torch.zeros(0, 3)[:, 0],
    "one element in two axes": torch.as_strided(torch.randn(9), (1, 1), (3, 7)),
    "one element of half precision": torch.randn(1, 3).to(torch.bfloat16)[:, 1],
    "expanded": torch.randn(1)[::2].expand(1),
}


@pytest.mark.parametrize("name", ONE_OR_NONE)
def test_a_tensor_of_one_element_or_none_has_a_digest_whatever_its_strides(name: str):
    tensor = ONE_OR_NONE[name]
    packed = tensor.clone(memory_format=torch.contiguous_format)
    assert digest_tensors([(name, tensor)]) == digest_in_one_piece(name, packed)


def test_the_last_element_of_a_strided_vector_is_a_chunk_like_any_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digest, "_CHUNK_ELEMENTS", 4)
    tensor = torch.randn(27)[::3]  # 4 + 4 + 1 elements
    assert digest_tensors([("w", tensor)]) == digest_in_one_piece("w", tensor)


def test_one_bit_anywhere_changes_the_digest():
    tensor = torch.randn(1100, 1000)
    before = digest_tensors([("w", tensor)])
    tensor.view(torch.int32)[1099, 999] ^= 1
    assert digest_tensors([("w", tensor)]) != before


class Allocations(TorchDispatchMode):
    """The most bytes that results of torch held at once, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            size = result.untyped_storage().nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(result, self._free, size)
        return result

    def _free(self, size: int) -> None:
        self.live -= size


@pytest.mark.parametrize("shape", [(8192, 8192), (1 << 26,), (64, 1 << 20)])
def test_a_digest_takes_less_than_a_tenth_of_the_tensor(shape: tuple[int, ...]):
    tensor = torch.zeros(shape, dtype=torch.bfloat16)  # 128 MiB
    size = tensor.numel() * tensor.element_size()
    with Allocations():
        digest_tensors([("w", tensor[:2])])  # torch's imports on first use are not counted
    tracemalloc.start()
    try:
        with Allocations() as allocations:
            digest_tensors([("w", tensor)])
        taken = allocations.peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Of a matrix the sums are kept, int64: 8 MiB where the rows have a million elements.
    sums = 8 * (shape[0] + tensor.numel() // shape[0]) if len(shape) > 1 else 0
    assert taken - sums < 0.1 * size, f"{taken / MIB:.1f} MiB for {size / MIB:.0f}"
    assert len(shape) == 1 or taken > 0  # it does count
