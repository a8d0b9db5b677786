"""Adapters alone: the factors as engines hold them, and canaries of exactly these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from learners.config import LearnConfig
from learners.core.config import LoraConfig
from learners.core.policy import Policy
from learners.core.processes import run_on_ranks
from learners.core.publish import Publisher
from learners.core.ranks import Ranks
from solon.engines.chunks import named_tensors
from solon.errors import InputError
from tests.unit.learner_builders import write_llama


def publisher(tmp_path: Path, dtype: str, lora: LoraConfig | None = None, **options: Any) -> Publisher:
    path = write_llama(tmp_path)
    config = LearnConfig(kl_coefficient=0.0, advantages="group", lora=lora)
    policy = Policy(config, model=path, temperature=1.0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return Publisher(policy, model=path, dtype=dtype, **options)


def test_only_factors_are_sent_and_their_sum_is_the_merged_policy(tmp_path: Path):
    one = publisher(tmp_path, "float32", LoraConfig(r=2, alpha=6.0), adapter_only=True)
    weights = one.weights(1)
    sent, merged = dict(named_tensors(weights)), one.tensors()
    assert weights.adapter_rank == 2
    assert all(".lora_" in name for name in sent)
    with one._policy.whole() as whole:
        assert whole is not None
        for name in whole.plain:
            owner = "base_model.model." + name.removesuffix(".weight")
            added = sent[f"{owner}.lora_B.weight"] @ sent[f"{owner}.lora_A.weight"]
            torch.testing.assert_close(whole.plain[name] + added, merged[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_canaries_are_of_rounded_factors_that_are_not_merged(tmp_path: Path, dtype: str):
    one = publisher(tmp_path, dtype, LoraConfig(r=2, alpha=6.0), adapter_only=True)
    weights = one.weights(1)
    policy, rounded = one._policy, getattr(torch, dtype)
    with torch.no_grad():
        for name, layer in policy.base.named_modules():
            if hasattr(layer, "lora_A"):
                owner = f"base_model.model.{name}"
                sent = dict(named_tensors(weights))
                layer.lora_A["default"].weight.copy_(sent[f"{owner}.lora_A.weight"].float())
                layer.lora_B["default"].weight.copy_(sent[f"{owner}.lora_B.weight"].float() / layer.scaling["default"])
        for name, parameter in policy.base.named_parameters():
            if ".lora_" not in name:
                parameter.copy_(parameter.to(rounded).float())
        ids = torch.tensor(weights.canary_token_ids)
        found = policy.model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(found, torch.tensor(weights.canary_logprobs), atol=1e-5, rtol=1e-5)


def test_without_adapters_there_is_nothing_to_send(tmp_path: Path):
    with pytest.raises(InputError, match="a policy of which all weights train"):
        publisher(tmp_path, "float32", adapter_only=True)


def sent(ranks: Ranks, model: str) -> tuple[str, list[list[float]]]:
    """Fingerprint and canaries of the adapters of this rank's policy."""
    torch.manual_seed(0)
    policy = Policy(
        LearnConfig(kl_coefficient=0.0, advantages="group", lora=LoraConfig(r=2)),
        model=model, temperature=1.0, ranks=ranks,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    policy.divide()
    weights = Publisher(policy, model=model, dtype="float32", adapter_only=True).weights(1)
    return weights.fingerprint, [list(row) for row in weights.canary_logprobs]


def test_two_ranks_send_the_adapters_of_one_process(tmp_path: Path):
    model = write_llama(tmp_path)
    (alone,), (first, _) = (run_on_ranks(size, sent, model) for size in (1, 2))
    assert first[0] == alone[0]
    torch.testing.assert_close(torch.tensor(first[1]), torch.tensor(alone[1]), atol=1e-5, rtol=1e-5)
