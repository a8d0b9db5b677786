"""A learner on a device against the one on the host, and ranks on several devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.processes import run_on_ranks
from learners.core.ranks import ALONE, Ranks
from tests.trainings import apart, train
from tests.unit.learner_builders import random_groups, write_llama


def test_a_step_in_float32_on_the_device_is_that_of_the_host(tmp_path: Path):
    model = write_llama(tmp_path / "model")
    found = [
        train(ALONE, "ppo", model, {"device": device, "dtype": "float32", "serving_dtype": "float32"})
        for device in ("cpu", "cuda")
    ]
    found[1]["weights"] = {name: weight.cpu() for name, weight in found[1]["weights"].items()}
    assert found[0]["losses"] == pytest.approx(found[1]["losses"], rel=1e-3, abs=1e-5)
    assert apart(*found) < 1e-3


def peak_of_a_step(ranks: Ranks, model: str) -> int:
    """Most bytes that a rank had on its device in one step."""
    config = LearnConfig(advantages="group", kl_coefficient=0.05, device="cuda", gradient_checkpointing=True)
    learner = build_learner(config, model=model, temperature=1.0, seed=0, ranks=ranks)
    torch.cuda.reset_peak_memory_stats()
    learner.train(0, random_groups(8, 2))
    return int(torch.cuda.max_memory_allocated())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: each rank has one of its own")
def test_ranks_on_two_devices_train_alike_and_hold_half(tmp_path: Path):
    model = write_llama(tmp_path / "model", hidden_size=512, intermediate_size=2048, num_hidden_layers=16)
    options = {"device": "cuda", "dtype": "float32", "serving_dtype": "float32"}
    first, second = run_on_ranks(2, train, "group_relative", model, options, device="cuda")
    assert apart(first, second) == 0
    (alone,), both = (run_on_ranks(size, peak_of_a_step, model, device="cuda") for size in (1, 2))
    assert max(both) < 0.7 * alone
