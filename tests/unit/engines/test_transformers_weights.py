"""New weights in the Transformers engine, compared under the names that files have and the model may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from solon.engines.base import EngineConfig
from solon.engines.chunks import packed
from solon.engines.runner import load_and_report
from solon.engines.transformers import TransformersEngine
from solon.errors import AttestationError
from solon.pipeline.attestation import attest
from solon.records import Weights
from tests.models import make_tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "gpt_neox"
    config = AutoConfig.for_model(
        "gpt_neox",
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=5,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    make_tokenizer([f"w{i}" for i in range(10)]).save_pretrained(path)
    return path


def payload_of(tensors: dict[str, torch.Tensor], engine: TransformersEngine) -> Weights:
    """As a learner sends them, with the canaries of an engine that loads them."""
    made = packed(1, tensors.items(), canary_token_ids=((6, 7, 8, 9),))
    engine.load_weights(made)
    return replace(made, canary_logprobs=tuple(map(tuple, engine.sequence_logprobs(made.canary_token_ids))))


def test_weights_are_attested_under_the_names_of_the_file_and_a_stale_one_is_named(path: Path):
    engine: Any = TransformersEngine(EngineConfig(model=str(path), backend="transformers", max_model_len=16), name="e")
    sent = {name: tensor + 0.01 for name, tensor in load_file(path / "model.safetensors").items()}
    assert "embed_out.weight" in sent.keys() - engine._model.state_dict().keys()
    weights = payload_of(sent, engine)
    receipt = attest(weights, load_and_report(engine, weights), last_checksum=None)
    assert (receipt.check.compared, receipt.check.unknown) == (len(sent), ())

    engine._model.lm_head.weight[0, 0] += 1e-3
    with pytest.raises(AttestationError, match=r"1 of the .* tensors.*\(embed_out\.weight\)"):
        attest(weights, replace(receipt, check=engine.check_weights(weights)), last_checksum=None)


def test_a_live_tensor_without_a_published_counterpart_is_uncompared(path: Path):
    engine: Any = TransformersEngine(EngineConfig(model=str(path), backend="transformers", max_model_len=16), name="e")
    sent = load_file(path / "model.safetensors")
    weights = payload_of(sent, engine)
    engine._model.gpt_neox.final_layer_norm.register_parameter("gain", torch.nn.Parameter(torch.ones(8)))
    found = engine.check_weights(weights)
    assert found.uncompared == found.unknown == ("gpt_neox.final_layer_norm.gain",)
    assert (found.compared, found.stale) == (len(sent), ())
