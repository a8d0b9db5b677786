from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_file import RunFile
from cluster.placement.memory import (
    RoleMemory,
    device_memory,
    estimate,
    estimate_of,
    machine_memory,
    table_rows,
    too_much,
)
from learners.config import LearnConfig
from learners.core.config import CHUNK, PIECE
from learners.memory import learner_memory
from solon.engines import vllm_build
from solon.engines.base import EngineConfig, EngineOptions
from solon.engines.memory import BATCHED_TOKENS, GIB, engine_memory
from solon.engines.vllm_build import _arguments, _require_alone
from solon.engines.vllm_memory import gpu_memory_arguments
from solon.errors import InputError
from solon.models.facts import ModelFacts, read_facts
from solon.models.sizes import ModelSizes, sizes_of
from tests.unit.run_files import make_run

ROOT = Path(__file__).resolve().parents[3]
QWEN_HALF = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
QWEN_SEVEN_INT8 = QWEN_HALF | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}},
    },
}


def sizes(config: dict[str, Any]) -> ModelSizes:
    found = sizes_of(ModelFacts(path=Path("model"), config=config, tokenizer_config={}, generation={}))
    assert found is not None
    return found


HALF, SEVEN = sizes(QWEN_HALF), sizes(QWEN_SEVEN_INT8)


def gib(size: int) -> float:
    return round(size / GIB, 2)


# -- sizes of models ---------------------------------------------------------------------------------------------------


def test_element_counts_match_the_model_cards():
    assert HALF.parameters == 494_032_768
    assert SEVEN.parameters == 7_615_616_512
    assert HALF.cached_elements == 2 * 24 * 2 * 64
    assert (HALF.head, SEVEN.head) == (0, 152064 * 3584)
    # Eight bits in the layers; embedding, head, norms and biases in sixteen.
    assert gib(SEVEN.weights(2)) == gib(SEVEN.fixed + 2 * SEVEN.wide)
    assert 8.0 < SEVEN.weights(2) / GIB < 8.2


def test_element_counts_from_the_configuration_match_the_weights(tmp_path: Path):
    from tests.unit.learner_builders import write_llama

    facts = read_facts(Path(write_llama(tmp_path / "model", tied=False, hidden_size=64, intermediate_size=160)))
    by_weights, by_config = sizes_of(facts), sizes(dict(facts.config))
    assert by_weights is not None
    assert by_weights.parameters == by_config.parameters
    assert by_weights.head == by_config.head > 0


@pytest.mark.parametrize("change", [{"num_local_experts": 8}, {"hidden_size": None}, {"kv_lora_rank": 512}])
def test_models_of_other_kinds_are_not_estimated(change: dict[str, Any]):
    facts = ModelFacts(path=Path("model"), config=QWEN_HALF | change, tokenizer_config={}, generation={})
    assert sizes_of(facts) is None


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_eight_ranks_hold_a_policy_of_seven_billion_that_one_device_does_not():
    plain = sizes({key: value for key, value in QWEN_SEVEN_INT8.items() if key != "quantization_config"})
    config = LearnConfig(advantages="group", gradient_checkpointing=True)
    one, eight = (
        learner_memory(plain, config, on_gpu=True, longest=2048, runtime=GIB // 2, ranks=ranks) for ranks in (1, 8)
    )
    assert one.total > 100 * GIB
    assert eight.total < 40 * GIB
    assert eight.weights == one.weights // 8
    assert eight.moments == one.moments // 8
    assert eight.publishing == one.publishing


MEASURED = {1: (5_200, 5_625), 2: (2_911, 3_210)}
"""Of SmolLM2's shape, by ranks, millions of bytes: what the allocator gave out at most, and the resident peak."""


@pytest.mark.parametrize("ranks", MEASURED)
def test_the_estimate_is_what_a_learner_was_measured_to_allocate(ranks: int):
    small = ModelSizes(
        parameters=134_515_008, wide=134_515_008, fixed=0, head=0, layers=30, hidden=576, intermediate=1536, heads=9,
        kv_heads=3, head_dim=64, vocabulary=49152, own_bytes=4,
    )  # fmt: skip
    config = LearnConfig(kl_coefficient=0.05, max_tokens_per_microbatch=256, gradient_checkpointing=True)
    found = learner_memory(small, config, on_gpu=False, longest=64, runtime=0, ranks=ranks)
    allocated, resident = MEASURED[ranks]
    assert found.in_use / 1e6 == pytest.approx(allocated, rel=0.02)
    assert resident == pytest.approx(found.total / 1e6, rel=0.04)
    staged = learner_memory(small, config, on_gpu=False, longest=64, runtime=0, ranks=ranks, staged=True)
    assert staged.in_use - found.in_use == 12 * (2 * small.parameters) // ranks


def test_checkpoints_beside_steps_and_whole_networks_at_the_start_are_in_the_memory_of_the_host():
    config = LearnConfig(gradient_checkpointing=True)
    host, device = (
        learner_memory(SEVEN, config, on_gpu=on_gpu, longest=512, runtime=0, ranks=64, staged=True)
        for on_gpu in (False, True)
    )
    assert host.starting > 4 * 3 * SEVEN.parameters - 4 * SEVEN.head - GIB
    assert host.in_use == host.starting > 3 * device.total
    lora = LearnConfig(lora={"r": 16})
    of_cpu, of_gpu = (
        learner_memory(SEVEN, lora, on_gpu=on_gpu, longest=512, runtime=0, staged=True).staging
        for on_gpu in (False, True)
    )
    assert of_gpu - of_cpu == 4 * SEVEN.parameters  # frozen weights are read where they are


# -- engines -----------------------------------------------------------------------------------------------------------


def test_an_engine_with_a_share_of_a_device_takes_that_share():
    options = EngineOptions(gpu_memory_utilization=0.4)
    found = engine_memory(SEVEN, options, on_gpu=True, reloads=False, device=40 * GIB)
    assert found.total == pytest.approx(16 * GIB, abs=2)
    assert found.cache > 4 * GIB
    assert found.reload == 0


def test_a_configured_cache_size_is_used_on_gpu_and_cpu():
    for on_gpu in (False, True):
        found = engine_memory(HALF, EngineOptions(kv_cache_gib=2), on_gpu=on_gpu, reloads=True, device=40 * GIB)
        assert found.cache == 2 * GIB
        assert found.weights == HALF.parameters * (2 if on_gpu else 4)
        assert found.reload == found.weights
    assert engine_memory(HALF, EngineOptions(), on_gpu=False, reloads=False).cache == GIB // 2


def test_vllm_is_told_the_size_of_its_cache_so_that_it_measures_nothing():
    config = EngineConfig(model="m", device="gpu", shares_device=True, kv_cache_gib=3, max_model_len=2048)
    arguments, needed = gpu_memory_arguments(config, SEVEN, 40 * GIB)
    assert arguments["kv_cache_memory_bytes"] == 3 * GIB
    # vLLM requires exactly the memory that it uses to be free, so two engines start side by side.
    assert arguments["gpu_memory_utilization"] == pytest.approx(needed / (40 * GIB))
    assert 11 * GIB < needed < 16 * GIB
    by_share = config.model_copy(update={"kv_cache_gib": None, "gpu_memory_utilization": 0.4})
    arguments, needed = gpu_memory_arguments(by_share, SEVEN, 40 * GIB)
    assert arguments["kv_cache_memory_bytes"] > 2 * GIB
    assert needed == pytest.approx(16 * GIB, abs=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_memory_utilization": 0.2}, "gpu_memory_utilization = 0.2 of 40.0 GiB leaves 0.00 after weights of 8.1"),
        ({"kv_cache_gib": 0.01}, "a request of max_model_len = 1024 tokens needs 0.05 GiB of cache, and kv_cache_gib"),
        ({"kv_cache_gib": 39}, r"needs 49.2 GiB on a GPU \(weights 8.1, cache 39.0\), this one has 40.0"),
    ],
)
def test_an_engine_that_does_not_fit_its_gpu_is_refused_with_the_numbers(changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        gpu_memory_arguments(EngineConfig(model="m", **changes), SEVEN, 40 * GIB)


def test_a_model_of_unknown_size_is_measured_only_on_a_gpu_of_its_own():
    own = EngineConfig(model="m", gpu_memory_utilization=0.7)
    assert gpu_memory_arguments(own, None, 40 * GIB) == ({"gpu_memory_utilization": 0.7}, 0)
    shared = own.model_copy(update={"shares_device": True})
    with pytest.raises(InputError, match=r"shares a GPU and its size does not follow.*set kv_cache_gib"):
        gpu_memory_arguments(shared, None, 40 * GIB)
    given = shared.model_copy(update={"kv_cache_gib": 2.0})
    assert gpu_memory_arguments(given, None, 40 * GIB)[0]["kv_cache_memory_bytes"] == 2 * GIB


@pytest.mark.parametrize(("given", "tokens"), [({}, 8192), ({"max_batched_tokens": 16384}, 16384)])
def test_vllm_receives_the_tokens_per_step_instead_of_its_default_2048(given: dict[str, Any], tokens: int):
    config = EngineConfig(model="m", max_model_len=32768, dtype="float32", **given)
    assert _arguments(config, on_cpu=False)["max_num_batched_tokens"] == tokens
    # A prompt is computed in one piece there.
    assert _arguments(config, on_cpu=True)["max_num_batched_tokens"] == 32768
    assert _arguments(config, on_cpu=True)["kv_cache_memory_bytes"] == GIB // 2


def test_a_second_engine_of_a_process_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    config = EngineConfig(model="m")
    _require_alone(config)
    monkeypatch.setattr(vllm_build, "_live", {1})
    with pytest.raises(InputError, match="the engine of 'm' would be the second one of this process on a GPU"):
        _require_alone(config)


def test_steps_of_an_engine_have_room_for_a_judges_questions():
    options = EngineOptions(max_batched_tokens=16384)
    wide = engine_memory(SEVEN, options, on_gpu=True, reloads=False).activations
    usual = engine_memory(SEVEN, EngineOptions(), on_gpu=True, reloads=False).activations
    assert BATCHED_TOKENS == 8192
    assert wide > 1.5 * usual


# -- the learner -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "copies"),
    [({}, 9), ({"advantages": "group"}, 5), ({"advantages": "group", "kl_coefficient": 0.0}, 4)],
)
def test_the_learner_holds_as_many_float32_copies_as_its_settings_ask_for(settings: dict[str, Any], copies: int):
    found = learner_memory(HALF, LearnConfig(**settings), on_gpu=True, longest=512, runtime=0)
    assert found.weights + found.moments + found.gradients == copies * 4 * HALF.parameters


def test_logits_follow_the_microbatch_and_the_vocabulary_up_to_one_chunk():
    small, larger, large, huge = (
        learner_memory(HALF, LearnConfig(max_tokens_per_microbatch=n), on_gpu=True, longest=512, runtime=0)
        for n in (512, 800, 8192, 65536)
    )
    assert small.scoring == 2 * 512 * 151936
    assert larger.scoring == 2 * 800 * 151936
    assert large.scoring == huge.scoring == 2 * CHUNK["cuda"] + 12 * PIECE["cuda"]
    # A conversation that is longer than a microbatch has one of its own.
    long = learner_memory(HALF, LearnConfig(max_tokens_per_microbatch=16), on_gpu=True, longest=512, runtime=0)
    assert long.scoring == small.scoring


def test_adapters_need_no_second_copy_for_the_reference():
    lora = learner_memory(SEVEN, LearnConfig(lora={"r": 16}), on_gpu=True, longest=512, runtime=0)
    full = learner_memory(SEVEN, LearnConfig(), on_gpu=True, longest=512, runtime=0)
    assert lora.total < 0.5 * full.total
    assert lora.publishing > full.publishing  # merged in float32 first


# -- a run -------------------------------------------------------------------------------------------------------------


def example(*overrides: str) -> tuple[RunFile, dict[str, ModelSizes | None]]:
    run = RunFile.load(ROOT / "examples" / "one_gpu.toml", overrides=overrides)
    return run, {run.policy: HALF, run.judge: SEVEN}


def warnings(run: RunFile, roles: list[RoleMemory], device: float) -> list[str]:
    return too_much(run, roles, device=int(device * GIB), ram=None)


def test_the_example_for_one_gpu_fits_a_card_of_40_gb():
    run, known = example()
    card = 39.4  # the driver leaves this much of 40 GB
    roles = estimate_of(run, known, device=int(card * GIB))
    assert [role.role for role in roles] == ["rollout", "judge", "learner"]
    assert all(role.parts is not None and min(role.parts.values()) >= 0 for role in roles)
    assert warnings(run, roles, card) == []
    assert 25 < sum(role.total for role in roles) / GIB < card
    (told,) = warnings(run, roles, 24)
    assert told.startswith("the workers that share one GPU need about")
    assert "it has 24.0; lower kv_cache_gib" in told


def test_a_large_microbatch_no_longer_fits_the_example():
    run, known = example("learn.max_tokens_per_microbatch=131072")
    assert warnings(run, estimate_of(run, known, device=40 * GIB), 40)


def test_with_several_gpus_every_worker_has_to_fit_its_share():
    run, known = example("rollout.num_actors=4", "rollout.num_gpus=0.1")
    told = warnings(run, estimate_of(run, known, device=40 * GIB), 40)
    assert len(told) == 2
    assert "rollout Qwen/Qwen2.5-0.5B-Instruct needs about" in told[0]
    assert "its num_gpus = 0.1 of a GPU is 4.0; raise num_gpus" in told[0]
    assert told[1].startswith("learner")


def test_unknown_sizes_are_reported_as_unknown_and_cause_no_warning():
    run, _ = example()
    roles = estimate_of(run, {}, device=None)
    assert [row[-1] for row in table_rows(roles)] == ["?"] * 3
    assert [role.as_json()["total_gib"] for role in roles] == [None] * 3
    assert too_much(run, roles, device=None, ram=GIB) == []


def test_a_run_on_the_cpu_is_compared_with_the_memory_of_the_machine(tmp_path: Path):
    run = RunFile.load(make_run(tmp_path))
    roles = estimate(run, device=None)
    assert [row[3] for row in table_rows(roles)] == ["CPU"] * 3
    assert too_much(run, roles, device=None, ram=1000 * GIB) == []
    (told,) = too_much(run, roles, device=None, ram=GIB)
    assert "workers on the CPU need about" in told


def test_the_memory_of_a_device_is_the_given_value_or_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert device_memory(40) == 40 * GIB
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_memory() == 40 * GIB
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert device_memory() is None
    assert machine_memory() is None
    monkeypatch.delenv("RAY_ADDRESS")
    smi.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert device_memory() is None
    assert (machine_memory() or 0) > GIB


def test_check_prints_the_memory_of_every_role(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from solon.cli.check import run_check

    run = make_run(tmp_path)
    found = run_check(run, overrides=["rollout.num_gpus=0.5", "rollout.kv_cache_gib=5"], as_json=False, device_gib=1)
    printed = capsys.readouterr().out
    assert "memory of one actor, GiB, estimated (GPUs: 1.0 GiB each):" in printed
    assert "0.5 GPU" in printed
    assert json.loads(json.dumps(found["memory"]))["device_gib"] == 1
    assert [actor["role"] for actor in found["memory"]["actors"]] == ["rollout", "judge", "learner"]
    assert any("the workers that share one GPU need about" in warning for warning in found["warnings"])
