"""A learner on a CUDA device: memory of a large vocabulary, shared rows, publication, checkpoints, twenty steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.batch import Batch
from learners.core.policy import Policy
from learners.memory import learner_memory
from solon.engines.chunks import cut
from solon.models.facts import read_facts
from solon.models.sizes import ModelSizes, sizes_of
from tests.gpu.engines import SIZES, mean_gap, write_model
from tests.unit.learner_builders import make_group, model_from, put, random_groups, sampled_groups, write_llama

TOKENS, WORDS = 8192, 152_000
WANTED = 7
HALF_A_BILLION = {
    "vocab_size": WORDS,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": TOKENS,
}
"""Shapes of Qwen2.5-0.5B."""
GROUP: dict[str, Any] = {"advantages": "group", "device": "cuda"}


def sizes_in(model: str) -> ModelSizes:
    found = sizes_of(read_facts(Path(model)))
    assert found is not None
    return found


def long_groups(tokens: int, longest: int) -> list[Any]:
    """Groups of four answers, with so many tokens in all; no row is longer than `longest`."""
    drawn = np.random.default_rng(0)
    groups = []
    for ordinal in range(tokens // (4 * longest)):
        prompt, *answers = (drawn.integers(3, 30, longest // 2).tolist() for _ in range(5))
        groups.append(make_group(ordinal, prompt, answers, [0.0, 1.0, 2.0, 3.0]))
    return groups


def test_8192_tokens_of_152_000_words_stay_within_the_estimate(tmp_path: Path):
    model = write_llama(tmp_path / "model", **(SIZES | {"vocab_size": WORDS, "max_position_embeddings": TOKENS}))
    config = LearnConfig(kl_coefficient=0.05, max_tokens_per_microbatch=TOKENS, **GROUP)
    estimate = learner_memory(sizes_in(model), config, on_gpu=True, longest=1024, runtime=0).total
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    learner = build_learner(config, model=model, temperature=1.0, seed=0)
    learner.train(0, long_groups(TOKENS, 1024))
    learner.initial_weights()
    peak = torch.cuda.max_memory_allocated() - before
    print(f"peak {peak / 2**30:.2f} GiB, estimate {estimate / 2**30:.2f}")
    assert peak <= 1.25 * estimate
    assert peak < 12.5 * TOKENS * WORDS  # what whole logits would take


def test_shared_and_plain_rows_in_16_bits_give_the_same_log_probs(tmp_path: Path):
    model, batch = write_model(tmp_path / "model"), Batch.of(long_groups(2048, 128))
    found = []
    for share in (True, False):
        config = LearnConfig(kl_coefficient=0.0, share_prompts=share, dtype="bfloat16", **GROUP)
        policy = Policy(config, model=model, temperature=0.9)
        logprobs_N = torch.zeros(batch.num_tokens)
        with torch.no_grad():
            for microbatch in policy.layout.microbatches(batch, range(batch.num_rollouts), policy.device):
                logprobs_N.index_add_(0, microbatch.index_M.cpu(), policy.logprobs(microbatch).float().cpu())
        found.append(logprobs_N.tolist())
    assert mean_gap([found[0]], [found[1]]) < 0.02


def test_chunks_that_come_from_the_device_are_those_of_the_host():
    torch.manual_seed(0)
    shapes = {"a.weight": (300, 20), "a.bias": (7,), "b.weight": (4, 2500), "c.none": (0,), "d.weight": (33,)}
    kinds = (torch.bfloat16, torch.float32, torch.float16, torch.float32, torch.int64)
    named = [
        (name, (100 * torch.randn(shape)).to(kind)) for (name, shape), kind in zip(shapes.items(), kinds, strict=True)
    ]
    found = []
    for device in ("cpu", "cuda"):
        chunks, cutting = [], cut([(name, tensor.to(device)) for name, tensor in named], bound=13_000)
        while True:
            try:
                chunks.append([part.copy() for part in next(cutting)])
            except StopIteration as end:
                found.append((end.value, [part.tobytes() for chunk in chunks for part in chunk]))
                break
    assert found[0] == found[1]


def test_half_a_billion_parameters_are_published_within_the_estimate(tmp_path: Path):
    model = write_llama(tmp_path / "model", **HALF_A_BILLION)
    config = LearnConfig(kl_coefficient=0.0, serving_dtype="bfloat16", **GROUP)
    learner = build_learner(config, model=model, temperature=1.0, seed=0)
    estimate = learner_memory(sizes_in(model), config, on_gpu=True, longest=64, runtime=0)
    seconds, sent = [], 0
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        sent = sum(part.nbytes for chunk in learner.publish() for part in chunk)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() - before
    print(f"{sent / 1e9:.2f} GB in {seconds[0]:.2f} and {seconds[1]:.2f} s, peak {peak / 2**30:.2f} GiB")
    assert sent >= 2 * 450_000_000
    assert peak <= 1.25 * estimate.publishing
    assert seconds[1] < 10


def test_a_saved_learner_continues_from_its_weights_and_moments(tmp_path: Path):
    model = write_llama(tmp_path / "model")
    config = LearnConfig(kl_coefficient=0.05, learning_rate=1e-3, dtype="float32", serving_dtype="float32", **GROUP)
    first, second = (build_learner(config, model=model, temperature=1.0, seed=0) for _ in range(2))
    first.train(0, random_groups(8, 3))
    first.save(tmp_path / "saved")
    second.load(tmp_path / "saved")
    for step in (1, 2):
        groups = random_groups(8, 3, seed=step, version=step)
        norms = [learner.train(step, groups).metrics["learn/grad_norm/mean"] for learner in (first, second)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    for name, parameter in first.objective.policy.model.named_parameters():
        other = second.objective.policy.model.get_parameter(name)
        assert float((parameter - other).detach().norm()) <= 1e-3 * float(parameter.detach().norm())


def share_of_wanted(answer: list[int]) -> float:
    return answer.count(WANTED) / len(answer)


def test_a_token_that_a_program_rewards_becomes_common_in_twenty_steps(tmp_path: Path):
    model = write_llama(tmp_path / "model")
    config = LearnConfig(kl_coefficient=0.0, learning_rate=8e-3, **GROUP)
    learner = build_learner(config, model=model, temperature=1.0, seed=0)
    weights, rewards = learner.initial_weights(), []
    sampler = model_from(weights, model)
    for step in range(20):
        groups = sampled_groups(put(weights, sampler), share_of_wanted, num_groups=8, size=8, length=6, version=step)
        rewards.append(np.mean([reward for group in groups for reward in group.feedback.rewards_G]))
        _, weights = learner.step(step, groups)
    assert np.mean(rewards[-3:]) > 3 * np.mean(rewards[:3])
