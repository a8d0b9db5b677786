"""Models whose engine would disagree with their learner are refused, and vLLM does not modify Transformers' classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from compression.quantise import quantise_model
from learners.build import build_learner
from learners.config import LearnConfig
from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
from solon.engines.same_numbers import require_same_numbers
from solon.engines.vllm_classes import move_to_subclass
from solon.errors import InputError
from tests.architectures import ARCHITECTURES

COHERE2 = {"model_type": "cohere2", "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}
LONGROPE = {
    "model_type": "phi3",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
}
NESTED = {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096}}
DYNAMIC = {"model_type": "llama", "max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
QWEN2 = {"model_type": "qwen2", "num_hidden_layers": 28, "sliding_window": 4096, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("settings", "backends", "words"),
    [
        (COHERE2, ["vllm"], "see 4097 tokens where Transformers.* 4096.*max_model_len = 4096 or less, got 4097"),
        ({"text_config": COHERE2}, ["vllm"], "see 4097 tokens"),
        (LONGROPE, ["vllm", "transformers"], "'longrope'.* set max_model_len = 4096 or less"),
        (NESTED, ["vllm", "transformers"], "'longrope'"),
        ({"rope_parameters": {"full_attention": NESTED["rope_parameters"]}}, ["vllm", "transformers"], "'longrope'"),
        (DYNAMIC, ["vllm", "transformers"], "'dynamic'"),
        ({**QWEN2, "max_window_layers": 21}, ["vllm"], "7 of its 28 layers have a sliding window"),
        ({**QWEN2, "max_window_layers": 0, "layer_types": ["full_attention"] * 27 + ["sliding_attention"]}, ["vllm"],
         "1 of its 28"),
    ],
)  # fmt: skip
def test_a_model_that_the_engine_would_read_differently_is_refused(settings: Any, backends: list[str], words: str):
    for backend in ("vllm", "transformers"):
        if backend in backends:
            with pytest.raises(InputError, match=words):
                require_same_numbers(settings, backend=backend, max_model_len=4097)
        else:
            require_same_numbers(settings, backend=backend, max_model_len=4097)


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        (COHERE2, 4096),
        (LONGROPE, 4096),
        (DYNAMIC, 4096),
        ({**QWEN2, "max_window_layers": 28}, 32768),
        ({**QWEN2, "max_window_layers": 0}, 32768),
        ({**QWEN2, "max_window_layers": 21, "use_sliding_window": False}, 32768),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"model_type": "mistral", "sliding_window": 4096}, 32768),
        ({"model_type": "gpt2"}, 1024),
    ],
)
def test_a_model_that_the_engine_reads_alike_is_built(settings: Any, length: int):
    for backend in ("vllm", "transformers"):
        require_same_numbers(settings, backend=backend, max_model_len=length)


def test_an_engine_names_the_model_that_it_refuses(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(LONGROPE))
    with pytest.raises(InputError, match=rf"model '{tmp_path}': its rotary positions"):
        build_engine(EngineConfig(model=str(tmp_path), backend="transformers", max_model_len=8192), name="judge-0")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "llama4"])
def test_a_mixture_of_experts_is_no_policy_and_the_reason_is_given(tmp_path: Path, name: str):
    ARCHITECTURES[name]().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is a mixture of \d experts, expected a dense model: engines"):
        build_learner(LearnConfig(), model=str(tmp_path), temperature=1.0, seed=0)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_a_mixture_of_experts_is_not_quantised(tmp_path: Path, name: str):
    write_random(name, tmp_path / "model")
    with pytest.raises(InputError, match="is a mixture of experts, whose layers are not quantised here"):
        quantise_model(tmp_path / "model", tmp_path / "int8", "w8a8")


def test_a_model_without_linear_layers_is_not_quantised(tmp_path: Path):
    write_random("gpt2", tmp_path / "model")
    with pytest.raises(InputError, match=r"GPT2LMHeadModel\) has no linear layers that are quantised here"):
        quantise_model(tmp_path / "model", tmp_path / "int8", "w8a8")


def write_random(name: str, directory: Path) -> None:
    AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).save_pretrained(directory)


def test_decorations_move_to_a_subclass_and_the_class_is_as_before():
    class Wrapper:
        pass

    class Base:
        pass

    class Model(Base):
        note = "own"

        def __init__(self) -> None:
            self.built = "own"

        def run(self) -> str:
            return "own"

    bases, attributes = Model.__bases__, dict(vars(Model))
    existing = Model()
    Model.__bases__ = (*bases, Wrapper)
    Model.run = lambda self: "decorated"  # type: ignore[method-assign]
    Model.note = "decorated"
    Model.__call__ = lambda self: "called"  # type: ignore[attr-defined]
    decorated = move_to_subclass(Model, bases, attributes)
    assert Model.__bases__ == bases
    assert {name: value for name, value in vars(Model).items() if name in attributes} == attributes
    assert not hasattr(existing, "__call__")  # noqa: B004
    assert (existing.run(), Model.note, Model().built) == ("own", "own", "own")
    existing.__class__ = decorated
    assert (existing.run(), existing.note, existing()) == ("decorated", "decorated", "called")  # type: ignore[operator]
    assert isinstance(existing, Model)
    assert isinstance(existing, Wrapper)
    assert decorated.__name__ == "Model"
