"""A model is written a parameter at a time, as Transformers writes it, and appears whole or not at all."""

from __future__ import annotations

import gc
import json
import resource
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from learners.core.skeleton import LazyTensors
from solon.engines.model_writer import own_tensors, whole_model, write_model
from solon.engines.weight_files import write_weights
from solon.errors import InputError
from solon.runs.directory import DiskFullError
from tests.architectures import ARCHITECTURES
from tests.unit.learner_builders import write_llama

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[name](**SMALL)).to(torch.float32)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


CONVERTED = ("gpt_neox", "mixtral")
"""Transformers has other names or shapes for these than their files."""


@pytest.mark.parametrize(
    ("name", "most"),
    [(name, most) for name in ("llama", "llama_tied", "phi3", "gpt2") for most in (None, 30_000)]
    + [(name, None) for name in CONVERTED],
)
def test_files_are_those_of_transformers_to_the_byte(name: str, most: int | None, tmp_path: Path):
    model, sizes = model_of(name), {} if most is None else {"shard_bytes": most}
    model.save_pretrained(tmp_path / "theirs", max_shard_size=most or "50GB")
    (tmp_path / "ours").mkdir()
    write_model(model, tmp_path / "ours", **sizes)
    ours, theirs = files_of(tmp_path / "ours"), files_of(tmp_path / "theirs")
    assert ours == theirs
    assert ("model.safetensors.index.json" in ours) == (most is not None)


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_weights_are_written_layer_by_layer_and_load_as_the_same_model(name: str, tmp_path: Path):
    model = model_of(name)
    assert len(write_model(model, tmp_path, shard_bytes=30_000)) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


def test_every_dtype_has_the_bytes_and_the_order_of_safetensors(tmp_path: Path):
    tensors = {
        "b.w": torch.randn(5, 3), "a": torch.randn(7).bfloat16(), "é": torch.arange(3), "c": torch.randn(2, 2).half(),
        "s": torch.tensor(2.5), "e": torch.zeros(0, 4), "z": torch.tensor([True, False]), "d": torch.randn(2).double(),
    }  # fmt: skip
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    write_weights(tmp_path, tensors, reversed(tensors.items()))
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_shards_are_within_their_bound_and_load_as_the_same_model(tmp_path: Path):
    model = model_of("llama_tied")
    names = write_model(model, tmp_path, dtype=torch.bfloat16, shard_bytes=20_000)
    assert len(names) > 2
    assert all(sum(t.nbytes for t in load_file(tmp_path / name).values()) <= 20_000 for name in names)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(loaded.state_dict()[name], tensor.bfloat16()) for name, tensor in model.state_dict().items())


class Held:
    """Bytes of made tensors that nobody has freed, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def made(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        self.now += copy.nbytes
        self.most = max(self.most, self.now)
        weakref.finalize(copy, self._freed, copy.nbytes)
        return copy

    def _freed(self, nbytes: int) -> None:
        self.now -= nbytes


def test_no_more_than_the_largest_tensor_is_held_at_once(tmp_path: Path):
    model, held = model_of("llama"), Held()
    own = own_tensors(model)
    makers = {name: partial(held.made, tensor) for name, tensor in own.items()}
    gc.collect()
    write_model(model, tmp_path, LazyTensors(makers), dtype=torch.bfloat16, shard_bytes=40_000)
    largest = max(tensor.nbytes for tensor in own.values())
    assert held.most <= largest < sum(tensor.nbytes for tensor in own.values()) / 8
    assert held.now == 0


@contextmanager
def room_for(nbytes: int) -> Iterator[None]:
    """No file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_former_model_and_nothing_else(tmp_path: Path):
    place = Path(write_llama(tmp_path / "policy"))
    before = files_of(tmp_path)
    told = pytest.raises(DiskFullError, match=r"the disk of \S+ is full .*free some space, then start")
    with room_for(20_000), told, whole_model(place) as folder:
        write_model(model_of("llama"), folder)
    assert files_of(tmp_path) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["policy"]


def test_a_new_model_takes_the_place_of_the_former_one_and_of_nothing_else(tmp_path: Path):
    place = Path(write_llama(tmp_path / "policy"))
    (place / "model-00001-of-00002.safetensors").touch()
    with whole_model(place) as folder:
        write_model(model_of("llama"), folder)
    assert sorted(one.name for one in place.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]
    (tmp_path / "thesis.txt").touch()
    told = pytest.raises(InputError, match="holds other files than a model, expected a new directory")
    with told, whole_model(tmp_path):
        raise AssertionError
    assert (tmp_path / "thesis.txt").exists()


def test_a_tensor_that_is_missing_or_has_another_shape_is_refused(tmp_path: Path):
    declared = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(ValueError, match="got no tensor b, 1 of 2 are missing"):
        write_weights(tmp_path, declared, [("a", torch.zeros(2))])
    with pytest.raises(ValueError, match="got b of the shape"):
        write_weights(tmp_path, declared, [("b", torch.zeros(2))], stem="other")
