"""Canaries computed with one layer's tensors at a time."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.config import LearnConfig
from learners.core.policy import Policy
from learners.core.publish import Publisher
from learners.core.skeleton import LazyTensors, forward_at_once, forward_by_layer, layers_of
from solon.engines.chunks import collected, named_tensors
from tests.unit.learner_builders import write_llama

IDS_BT = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


def publisher(tmp_path: Path, *, layers: int = 2, **config: Any) -> Publisher:
    path = write_llama(tmp_path, num_hidden_layers=layers)
    policy = Policy(LearnConfig(kl_coefficient=0.0, advantages="group", **config), model=path, temperature=1.0)
    return Publisher(policy, model=path, dtype="bfloat16", chunk_bytes=1 << 13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_by_layer_gives_the_numbers_of_a_pass_with_everything(tmp_path: Path, dtype: torch.dtype):
    one = publisher(tmp_path)
    buffers = {name: (lambda buffer=buffer: buffer) for name, buffer in one._policy.base.named_buffers()}
    tensors = one.tensors()
    state = LazyTensors(buffers | {name: (lambda name=name: tensors[name]) for name in tensors})
    with torch.no_grad():
        found, expected = (way(one._skeleton, state, dtype, IDS_BT) for way in (forward_by_layer, forward_at_once))
    assert torch.equal(found, expected)
    assert one._by_layer
    assert all("forward" not in vars(layer) for layer in layers_of(one._skeleton).values())


def test_only_one_layer_is_there_at_a_time(tmp_path: Path):
    one = publisher(tmp_path, layers=6)
    tensors, alive = one.tensors(), list[weakref.ref[Tensor]]()
    most = 0

    def made(name: str) -> Tensor:
        nonlocal most
        gc.collect()
        most = max(most, sum(reference() is not None for reference in alive))
        tensor = tensors[name].clone()
        if ".layers." in name:
            alive.append(weakref.ref(tensor))
        return tensor

    lazily = LazyTensors({name: (lambda name=name: made(name)) for name in tensors})
    one.canary_logprobs(lazily, torch.bfloat16)
    assert len(alive) == 6 * 9
    assert most <= 9


def test_a_model_that_reads_a_layers_tensors_from_outside_gets_everything_at_once(tmp_path: Path):
    one = publisher(tmp_path)
    expected = one.canary_logprobs(one.tensors(), torch.float32)
    model = one._skeleton.model
    plain = model.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        float(model.layers[0].mlp.up_proj.weight.sum())
        return plain(*arguments, **named)

    model.forward = forward
    assert one.canary_logprobs(one.tensors(), torch.float32) == expected
    assert not one._by_layer


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_what_is_published_in_chunks_is_the_policy_with_its_adapters_merged(tmp_path: Path, lora: Any):
    one = publisher(tmp_path, **({} if lora is None else {"lora": lora}))
    weights = collected(one.publish(3))
    assert len(weights.chunks) > 2
    sent, expected = dict(named_tensors(weights)), dict(one.tensors().items())
    assert sent.keys() == expected.keys()
    assert all(torch.equal(sent[name], expected[name]) for name in sent)
    assert weights.canary_logprobs == one.canary_logprobs(expected, torch.float32)
