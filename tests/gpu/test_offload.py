"""Reference and moments in host memory: what a device then holds, and the numbers that it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.processes import run_on_ranks
from learners.core.ranks import ALONE, Ranks
from tests.trainings import apart, train
from tests.unit.learner_builders import random_groups, write_llama

OPTIONS = {"device": "cuda", "dtype": "float32", "serving_dtype": "float32"}
OFFLOADED = {"offload_reference": True, "offload_optimizer": True}


def held(model: str, options: dict[str, Any]) -> tuple[int, int]:
    """(bytes of parameters, bytes on the device after a step)."""
    config = LearnConfig(advantages="group", kl_coefficient=0.05, **OPTIONS, **options)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    learner = build_learner(config, model=model, temperature=1.0, seed=0)
    learner.train(0, random_groups(8, 2))
    parameters = sum(p.nbytes for p in learner.objective.policy.model.parameters())
    return parameters, torch.cuda.memory_allocated() - before


def test_a_device_holds_4_bytes_a_parameter_instead_of_16(tmp_path: Path):
    model = write_llama(tmp_path / "model", hidden_size=512, intermediate_size=2048, num_hidden_layers=16)
    parameters, resident = held(model, {})
    assert resident >= 3.9 * parameters  # float32: policy, reference, two moments
    for options, times in (({"offload_reference": True}, 3), ({"offload_optimizer": True}, 2), (OFFLOADED, 1)):
        assert held(model, options)[1] <= (times + 0.1) * parameters


def test_the_numbers_are_those_of_a_learner_that_offloads_nothing(tmp_path: Path):
    model = write_llama(tmp_path / "model")
    found = [train(ALONE, "ppo", model, OPTIONS | options) for options in ({}, OFFLOADED)]
    assert found[0]["losses"] == pytest.approx(found[1]["losses"], rel=1e-3, abs=1e-5)
    assert apart(*found) < 1e-3


def on_one_rank(ranks: Ranks, model: str) -> Any:
    return train(ranks, "ppo", model, OPTIONS | OFFLOADED)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: each rank has one of its own")
def test_so_are_those_of_ranks(tmp_path: Path):
    model = write_llama(tmp_path / "model")
    alone = train(ALONE, "ppo", model, OPTIONS)
    for found in run_on_ranks(2, on_one_rank, model, device="cuda"):
        assert apart(alone, found) < 1e-3
