"""Policy versions as adapters of a real vLLM engine: exact, apart from each other, and gone when unused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks._stale import make_tiny
from compression.quantise import quantise_model
from learners.config import LearnConfig
from learners.core.config import LoraConfig
from learners.core.policy import Policy
from learners.core.publish import Publisher
from solon.engines.base import AdapterRoom, Completion, EngineConfig, Request
from solon.engines.build import build_engine
from solon.engines.chunks import packed
from solon.engines.runner import load_and_report
from solon.errors import AttestationError, InputError
from solon.pipeline.attestation import NOISE_RATIO, attest
from solon.records import Weights
from tests.models import make_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PROMPT = tuple(range(6, 38))
"""Two blocks of the prefix cache."""


class Learner:
    """A policy with adapters that are moved at random."""

    def __init__(self, path: Path, dtype: str = "float32") -> None:
        config = LearnConfig(kl_coefficient=0.0, advantages="group", lora=LoraConfig(r=4, alpha=12.0))
        self.policy = Policy(config, model=str(path), temperature=1.0)
        self.publisher = Publisher(
            self.policy, model=str(path), dtype=dtype, adapter_only=True, engines_in_float32=dtype == "float32"
        )

    def weights(self, version: int) -> Weights:
        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for name, parameter in self.policy.model.named_parameters():
                if ".lora_B." in name:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return self.publisher.weights(version)

    def logprobs(self, weights: Weights, tokens: tuple[int, ...]) -> list[float]:
        """log p of each token but the first, by the learner's present adapters."""
        ids = torch.tensor([tokens])
        with torch.no_grad():
            logprobs = self.policy.model(ids).logits[:, :-1].log_softmax(-1)
        found: list[float] = logprobs.gather(-1, ids[:, 1:, None])[0, :, 0].tolist()
        return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "llama")


@contextmanager
def built(path: Path, **options: Any) -> Iterator[Any]:
    room = AdapterRoom(rank=4, versions=2)
    config = EngineConfig(
        model=str(path), max_model_len=256, max_running=4, kv_cache_gib=0.05, adapters=room, **options
    )
    engine = build_engine(config, name="rollout-0")
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Any]:
    with built(path) as engine:
        yield engine


def request(name: str, *, max_tokens: int = 64, prompt: tuple[int, ...] = PROMPT) -> Request:
    return Request(request_id=name, prompt_token_ids=prompt, max_tokens=max_tokens, seed=len(name))


def steps(engine: Any, number: int) -> list[Completion]:
    return [completion for _ in range(number) for completion in engine.step()]


def run_out(engine: Any) -> dict[str, Completion]:
    found = []
    while engine.has_work():
        found += engine.step()
    return {completion.request_id: completion for completion in found}


def test_an_adapter_alone_is_attested_by_its_values_and_its_log_probs(engine: Any, path: Path):
    learner = Learner(path)
    weights = learner.weights(1)
    whole = sum(p.numel() * 4 for n, p in learner.policy.base.named_parameters() if ".lora_" not in n)
    assert sum(data.nbytes for chunk in weights.chunks for data in chunk) < whole / 8
    receipt = attest(weights, load_and_report(engine, weights), last_checksum=None)
    assert receipt.max_gap < 1e-5
    assert not receipt.check.unknown
    assert engine._adapters.names == ("solon-v1",)


def test_one_changed_value_in_a_live_buffer_is_named(engine: Any, path: Path):
    weights = Learner(path).weights(2)
    load_and_report(engine, weights)
    module = engine._adapters._manager.modules["model.layers.1.self_attn.qkv_proj"]
    slot = engine._adapters._manager.lora_index_to_id.index(engine._adapters.current.request.lora_int_id)
    module.lora_b_stacked[2][slot, 0, 3, 1] += 1e-6
    check = engine.check_weights(weights)
    assert check.stale == ("adapter of model.layers.1.self_attn.v_proj",)
    module.lora_a_stacked[0][slot, 0, 7, 0] = 1.0  # in the padding, beyond the adapter's rank
    assert "adapter of model.layers.1.self_attn.q_proj" in engine.check_weights(weights).stale


def test_no_token_is_computed_from_the_cache_of_another_version(engine: Any, path: Path):
    learner = Learner(path)
    for version in (3, 4, 5):
        weights = learner.weights(version)
        engine.load_weights(weights)
        for name in ("first", "again"):
            engine.add(replace(request(name, max_tokens=8), temperature=0.0))
            completion = run_out(engine)[name]
            tokens = (*PROMPT, *completion.token_ids.tolist())
            expected = learner.logprobs(weights, tokens)[len(PROMPT) - 1 :]
            np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
            assert completion.segments == ((version, 8),)
            assert (completion.cached_tokens > 0) == (name == "again")


def test_the_same_version_with_other_bytes_is_another_adapter(engine: Any, path: Path):
    learner = Learner(path)
    for name in ("solon-v6", "solon-v6.1"):
        weights = learner.weights(6)
        attest(weights, load_and_report(engine, weights), last_checksum=None)
        assert engine._adapters.names == (name,)
        engine.add(replace(request("x", max_tokens=4), temperature=0.0))
        assert run_out(engine)["x"].cached_tokens == 0


def test_an_answer_keeps_its_version_and_others_get_the_new_one(engine: Any, path: Path):
    learner = Learner(path)
    engine.load_weights(learner.weights(7))
    engine.add(request("old", max_tokens=20))
    steps(engine, 5)
    engine.add(request("waiting", max_tokens=4, prompt=PROMPT[:20]))
    engine.load_weights(learner.weights(8))
    assert engine._adapters.names == ("solon-v7", "solon-v8")
    done = run_out(engine)
    assert {version for version, _ in done["old"].segments} == {7}
    assert {version for version, _ in done["waiting"].segments} == {8}
    assert engine._adapters.names == ("solon-v8",), "an unused version is removed"


def test_an_answer_whose_version_gives_up_its_place_continues_with_the_newest(engine: Any, path: Path):
    learner = Learner(path)
    engine.load_weights(learner.weights(9))
    engine.add(request("long", max_tokens=24))
    steps(engine, 6)
    engine.load_weights(learner.weights(10))
    engine.add(request("short", max_tokens=40))
    steps(engine, 4)
    weights = learner.weights(11)
    engine.load_weights(weights)
    assert engine._adapters.names == ("solon-v10", "solon-v11")
    long = run_out(engine)["long"]
    (first, before), (second, after) = long.segments
    assert (first, second, before + after) == (9, 11, len(long.token_ids))
    expected = learner.logprobs(weights, (*PROMPT, *long.token_ids.tolist()))[len(PROMPT) - 1 :]
    np.testing.assert_allclose(long.logprobs[before:], expected[before:], atol=1e-4)


def test_what_does_not_fit_changes_nothing(engine: Any, path: Path):
    learner = Learner(path)
    good = learner.weights(12)
    engine.load_weights(good)
    before = engine.sequence_logprobs([PROMPT])
    named = [("base_model.model.model.norm.lora_A.weight", torch.zeros(4, 128))]
    with pytest.raises(AttestationError, match="no place for the adapters of 1 layers"):
        engine.load_weights(replace(packed(13, named), adapter_rank=4))
    with pytest.raises(AttestationError, match="rank 16, expected at most 4"):
        engine.load_weights(replace(learner.weights(13), adapter_rank=16))
    with pytest.raises(InputError, match="got whole weights, expected an adapter"):
        engine.load_weights(replace(good, adapter_rank=0))
    damaged = [(*chunk[:-1], chunk[-1] + 1) for chunk in good.chunks]
    with pytest.raises(AttestationError, match="other bytes than the learner sent"):
        engine.load_weights(replace(good, chunks=damaged))
    assert engine.sequence_logprobs([PROMPT]) == before
    assert engine.version == 12


def test_an_adapter_that_is_lost_from_the_engine_is_noticed(engine: Any, path: Path):
    weights = Learner(path).weights(14)
    engine.load_weights(weights)
    engine._llm.remove_lora(engine._adapters.current.request.lora_int_id)
    assert len(engine.check_weights(weights).stale) == 14
    engine._adapters._alive.clear()


def test_the_directory_of_an_adapter_is_gone_after_the_load(engine: Any, path: Path):
    engine.load_weights(Learner(path).weights(15))
    assert not Path(engine._adapters.current.request.lora_path).exists()


@pytest.mark.parametrize("seed", range(2))
def test_in_bfloat16_rounding_explains_the_canaries(tmp_path: Path, seed: int):
    """A new engine takes a later version at once, as one does that joins a run."""
    path = make_tiny(tmp_path / "llama", "llama")
    learner = Learner(path, "bfloat16")
    with built(path, dtype="bfloat16") as engine:
        for version in (10 * seed + 5, 10 * seed + 6):
            weights = learner.weights(version)
            receipt = attest(weights, load_and_report(engine, weights), last_checksum=None)
            assert receipt.check.dtype == "bfloat16"
            assert 0 < receipt.mean_gap < NOISE_RATIO * weights.canary_noise
        learner.weights(99)  # other adapters than the engine holds
        other = replace(weights, canary_logprobs=learner.publisher.weights(99).canary_logprobs)
        with pytest.raises(AttestationError, match="mean canary gap"):
            attest(other, load_and_report(engine, weights), last_checksum=None)


def test_vllm_s_cpu_kernel_for_int8_takes_no_adapters(path: Path, tmp_path: Path):
    base = tmp_path / "int8"
    quantise_model(path, base, "w8a8")
    with pytest.raises(InputError, match="cannot be loaded"), built(base):
        pass
