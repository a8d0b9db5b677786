"""Log-probs in chunks against the whole logits: values, gradients, every architecture, adapters, sharded weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learners.config import LearnConfig, LoraConfig
from learners.core import head
from learners.core.batch import Batch
from learners.core.head import After, find_head
from learners.core.packing import Microbatch
from learners.core.policy import Policy, Scored
from solon.records import NO_FILTERS, Filters
from tests.architectures import ARCHITECTURES, VOCABULARY
from tests.unit.learner_builders import random_groups, write_llama

ROWS = 5
"""Tokens of a chunk."""
FILTERS = Filters(top_p=0.9, top_k=12, min_p=0.02, min_tokens=2)


def policy_of(
    folder: Path, name: str, *, filters: Filters = NO_FILTERS, temperature: float = 0.7, **changes: Any
) -> Policy:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name]())
    model.save_pretrained(folder)
    config = LearnConfig(kl_coefficient=0.1, advantages="group", **changes)
    policy = Policy(config, model=str(folder), temperature=temperature, filters=filters, end_ids=(1, 5), reference=True)
    with torch.no_grad():  # a reference of its own, and adapters that do something
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return policy


def microbatch_of(policy: Policy) -> Microbatch:
    batch = Batch.of(random_groups(4, 3, seed=1))
    return policy.layout.in_one(batch, range(batch.num_rollouts), policy.device)


def scored(
    policy: Policy, microbatch: Microbatch, rows: int, monkeypatch: pytest.MonkeyPatch, **wanted: bool
) -> tuple[Scored, torch.Tensor]:
    """Results with chunks of so many tokens, and the gradient of a mixture of them."""
    monkeypatch.setitem(head.CHUNK, "cpu", rows * VOCABULARY)
    policy.model.zero_grad()
    found = policy.score(microbatch, **wanted)
    weights = torch.linspace(-1, 2, microbatch.num_tokens)
    total = weights @ found.logprobs_M
    if found.entropy_M is not None:
        total = total + weights.flip(0) @ found.entropy_M
    total.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    return found, gradient.clone()


def require_equal(found: tuple[Scored, torch.Tensor], expected: tuple[Scored, torch.Tensor], tolerance: float) -> None:
    for field in dataclasses.fields(Scored):
        one, other = (getattr(side[0], field.name) for side in (found, expected))
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    assert float((found[1] - expected[1]).norm()) <= tolerance * float(expected[1].norm())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chunks_give_the_numbers_of_the_whole_logits_for_every_architecture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = policy_of(tmp_path, name)
    assert policy.head is not None
    microbatch = microbatch_of(policy)
    sides = [scored(policy, microbatch, rows, monkeypatch, entropy=True, reference=True) for rows in (ROWS, 10**6)]
    require_equal(sides[0], sides[1], tolerance=2e-5)


@pytest.mark.parametrize("filters", [NO_FILTERS, FILTERS, Filters(top_p=0.8)], ids=["all", "mixed", "top_p"])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", ["llama_tied", "gemma2"])
def test_chunks_know_temperature_entropy_filters_and_reference(
    name: str, temperature: float, entropy: bool, filters: Filters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = policy_of(tmp_path, name, filters=filters, temperature=temperature)
    microbatch = microbatch_of(policy)
    sides = [scored(policy, microbatch, rows, monkeypatch, entropy=entropy, reference=True) for rows in (ROWS, 10**6)]
    require_equal(sides[0], sides[1], tolerance=2e-5)
    if filters:
        assert 0 < int(sides[0][0].outside_M.sum()) < microbatch.num_tokens
    else:
        torch.testing.assert_close(policy.reference_logprobs(microbatch), sides[0][0].reference_M, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma2", "granite", "cohere2"])
def test_in_16_bits_chunks_are_as_near_to_the_truth_as_the_whole_logits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = policy_of(tmp_path, name, dtype="bfloat16")
    microbatch = microbatch_of(policy)
    chunks, whole = (scored(policy, microbatch, rows, monkeypatch, entropy=True) for rows in (ROWS, 10**6))
    policy._autocast_dtype = None
    exact = scored(policy, microbatch, 10**6, monkeypatch, entropy=True)
    for index, (ours, theirs, true) in enumerate(zip(chunks, whole, exact, strict=True)):
        a, b, c = (one if index else one.logprobs_M for one in (ours, theirs, true))
        with torch.no_grad():
            assert 0 < float((a - c).norm()) <= 1.2 * float((b - c).norm())
            assert float((a - b).norm()) <= 0.02 * float(c.norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("modules", ["all-linear", ("q_proj", "lm_head")], ids=["body", "head"])
def test_adapters_also_of_the_head_train_in_chunks(
    modules: Any, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = policy_of(tmp_path, "granite", lora=LoraConfig(r=3, target_modules=modules), dtype=dtype)
    assert policy.head == After(scale=0.5)
    microbatch = microbatch_of(policy)
    sides = [scored(policy, microbatch, rows, monkeypatch, entropy=True, reference=True) for rows in (ROWS, 10**6)]
    require_equal(sides[0], sides[1], tolerance=2e-5 if dtype == "float32" else 0.03)
    moved = sides[0][0].reference_M - sides[0][0].logprobs_M
    assert float(moved.detach().abs().max()) > 0.01


def test_a_head_with_a_bias_trains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ARCHITECTURES, "phi", lambda: AutoConfig.for_model(
        "phi", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    ))  # fmt: skip
    policy = policy_of(tmp_path, "phi")
    assert policy.head == After()
    microbatch = microbatch_of(policy)
    sides = [scored(policy, microbatch, rows, monkeypatch) for rows in (ROWS, 10**6)]
    require_equal(sides[0], sides[1], tolerance=2e-5)
    assert float(policy.base.lm_head.bias.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("name", "expected"), [("llama", After()), ("gemma2", After(cap=3.0)), ("granite", After(scale=0.5))]
)
def test_what_a_model_does_to_its_logits_is_found_by_trying_it(name: str, expected: After):
    assert find_head(AutoModelForCausalLM.from_config(ARCHITECTURES[name]())) == expected


@pytest.mark.parametrize("change", ["bans a token", "shifts", "centres", "another product"])
def test_logits_that_are_no_scaled_and_capped_product_are_taken_whole(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model: Any = AutoModelForCausalLM.from_config(ARCHITECTURES["llama"]())

    def altered(_module: Any, _args: Any, output: Any) -> Any:
        if change == "bans a token":
            output.logits[..., 3] = -100.0
        elif change == "shifts":
            output.logits = output.logits + 1.0
        else:
            output.logits = output.logits - output.logits.mean(-1, keepdim=True)
        return output

    if change == "another product":
        weight = model.lm_head.weight
        model.lm_head.forward = lambda hidden: 2 * torch.nn.functional.linear(hidden, weight)
    else:
        model.register_forward_hook(altered)
    assert find_head(model) is None
    policy = policy_of(tmp_path, "llama")
    policy.head = None
    monkeypatch.setattr("learners.core.policy.logprobs_through", None)
    scored(policy, microbatch_of(policy), ROWS, monkeypatch, reference=True)


def test_logits_that_fit_into_one_chunk_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policy = Policy(LearnConfig(), model=write_llama(tmp_path), temperature=1.0)
    calls, microbatch = [], microbatch_of(policy)
    policy.base.lm_head.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("learners.core.policy.logprobs_through", None)
    policy.logprobs(microbatch).sum().backward()
    assert len(calls) == 1


def test_hooks_that_gather_sharded_weights_run_as_for_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    policy = policy_of(tmp_path, "llama_tied")
    microbatch = microbatch_of(policy)
    _, expected = scored(policy, microbatch, ROWS, monkeypatch, entropy=True)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for layer in policy.base.model.layers:
            fully_shard(layer)
        fully_shard(policy.base)
        found = policy.score(microbatch, entropy=True)
        weights = torch.linspace(-1, 2, microbatch.num_tokens)
        policy.model.zero_grad()
        (weights @ found.logprobs_M + weights.flip(0) @ found.entropy_M).backward()
        gradients = [p.grad.full_tensor().flatten() for p in policy.model.parameters() if p.grad is not None]
    finally:
        distributed.destroy_process_group()
    gradient = torch.cat(gradients)
    assert float((gradient - expected).norm()) <= 1e-5 * float(expected.norm())
