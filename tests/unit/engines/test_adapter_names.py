"""Names of adapters, and the ranks for which vLLM makes room."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from solon.engines.adapter_names import RANKS, factor_names, layer_of, room_for, version_name
from solon.engines.base import AdapterRoom, EngineConfig
from solon.engines.build import build_engine
from solon.errors import AttestationError, InputError


def test_a_version_loaded_again_has_another_name():
    assert [version_name(3, loaded) for loaded in range(3)] == ["solon-v3", "solon-v3.1", "solon-v3.2"]


def test_names_of_factors_are_read_as_they_are_written():
    layer = "model.layers.0.mlp.up_proj"
    assert [layer_of(name) for name in factor_names(layer)] == [(layer, "A"), (layer, "B")]


@pytest.mark.parametrize("name", ["model.norm.weight", "base_model.model.x.lora_embedding_A"])
def test_any_other_tensor_is_no_factor(name: str):
    with pytest.raises(AttestationError, match="expected factors"):
        layer_of(name)


def test_room_is_made_for_the_ranks_that_vllm_takes():
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = (Path(spec.submodule_search_locations[0]) / "config" / "lora.py").read_text()
    (found,) = [
        ast.literal_eval(node.value.slice)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
        if any(isinstance(target, ast.Name) and target.id == "MaxLoRARanks" for target in node.targets)
    ]
    assert found == RANKS
    assert [room_for(rank) for rank in (1, 2, 16, 17, 512)] == [1, 8, 16, 32, 512]


def test_the_ranks_of_an_engine_take_no_adapters():
    config = EngineConfig(model="absent", tensor_parallel=2, adapters=AdapterRoom(rank=4))
    with pytest.raises(InputError, match="tensor_parallel = 2, expected 1"):
        build_engine(config, name="rollout-0")
