"""Adapters that cannot be published alone are refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.config.run_file import RunFile
from cluster.preflight.checks import Inputs, check_inputs
from solon.engines.base import AdapterRoom
from solon.errors import InputError
from solon.models.known import takes_adapters
from tests.unit.run_files import make_model, make_run

ADAPTER = ("publish.way=adapter", "learn.lora.r=4")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def checked(run: Path, *overrides: str) -> Inputs:
    return check_inputs(RunFile.load(run, overrides=[*ADAPTER, *overrides]))


def test_engines_have_room_for_the_learner_s_rank_and_the_versions_alive(run: Path):
    file = RunFile.load(
        run, overrides=[*ADAPTER, "publish.max_loras=3", 'learn.lora.target_modules=["self_attn.q_proj"]']
    )
    assert file.adapter_room == AdapterRoom(rank=4, versions=3, layers=("q_proj",))
    assert RunFile.load(run, overrides=["learn.lora.r=4"]).adapter_room is None
    checked(run)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["publish.way=adapter"], r"add \[learn.lora\] with r = 16"),
        ([*ADAPTER, "learn.lora.r=513"], "learn.lora.r = 513, expected at most 512"),
        ([*ADAPTER, "rollout.backend=transformers"], "expected 'vllm'"),
        ([*ADAPTER, "rollout.tensor_parallel=2"], "engines of 2 ranks, expected 1"),
        (["learn.lora.r=4", "rollout.base_model=small"], "replaces all weights of the engines"),
        ([*ADAPTER, "publish.max_loras=1"], "greater than or equal to 2"),
        ([*ADAPTER, "learn.grid=w4a16-g64"], "exclude each other"),
    ],
)
def test_what_cannot_work_is_refused_by_the_run_file(run: Path, overrides: list[str], words: str):
    with pytest.raises(InputError, match=words):
        RunFile.load(run, overrides=overrides)


@pytest.mark.parametrize("targets", ['["q_proj", "lm_head"]', '["embed_tokens"]', ".*embed_tokens"])
def test_embedding_and_head_cannot_be_adapted(run: Path, targets: str):
    with pytest.raises(InputError, match="target_modules"):
        checked(run, f"learn.lora.target_modules={targets}")


def test_an_architecture_without_adapters_is_refused(run: Path):
    file = RunFile.load(run)
    config = Path(file.policy) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(InputError, match="vLLM serves no adapters of GPT2LMHeadModel"):
        checked(run)


def test_weights_below_the_adapters_must_be_those_of_a_copy(run: Path, tmp_path: Path):
    base = make_model(tmp_path / "base")
    checked(run, f"rollout.base_model={base}")
    workers = RunFile.load(run, overrides=[*ADAPTER, f"rollout.base_model={base}"]).workers
    assert workers["rollout"].model == str(base)
    assert workers["learner"].model != str(base)
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_key_value_heads": 1}))
    with pytest.raises(InputError, match="num_key_value_heads = 1, the policy 2"):
        checked(run, f"rollout.base_model={base}")


@pytest.mark.parametrize(
    ("architecture", "takes"),
    [("LlamaForCausalLM", True), ("MistralForCausalLM", True), ("Phi3ForCausalLM", True), ("BloomForCausalLM", False)],
)
def test_vllm_s_sources_say_which_classes_take_adapters(architecture: str, takes: bool):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    assert takes_adapters(architecture) is takes
    assert takes_adapters("NoSuchModel") is None
