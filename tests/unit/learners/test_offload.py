"""Reference and moments in host memory. The arithmetic is the same on any device; what is saved shows on a GPU alone
(`tests/gpu/test_offload.py`)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.config.sections import LearnSection
from learners import build
from learners.build import Learner, build_learner
from learners.config import LearnConfig, LoraConfig
from learners.core.offload import compute_from_host
from learners.core.processes import run_on_ranks
from learners.core.ranks import ALONE, Ranks
from solon.errors import InputError
from tests.trainings import Result, apart, train
from tests.unit.learner_builders import random_groups, write_llama

OFFLOADED = {"offload_reference": True, "offload_optimizer": True}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no effect is not refused."""
    monkeypatch.setattr(build, "refuse_without_effect", lambda *_: None)


def learner_of(model: str, **changes: Any) -> Learner:
    config = LearnConfig(learning_rate=1e-3, critic_learning_rate=1e-3, **changes)
    return build_learner(config, model=model, temperature=1.0, seed=0)


def trained(ranks: Ranks, model: str, options: dict[str, Any]) -> Result:
    """`train`, where what has no effect is not refused."""
    build.refuse_without_effect = lambda *_: None
    return train(ranks, "ppo", model, options)


@pytest.mark.usefixtures("anywhere")
def test_weights_are_the_same_to_the_bit_wherever_reference_and_moments_are(llama: str):
    found = [train(ALONE, "ppo", llama, options) for options in ({}, OFFLOADED)]
    assert found[0]["losses"] == found[1]["losses"]
    assert apart(*found) == 0


def test_so_they_are_on_ranks(llama: str):
    resident, offloaded = (run_on_ranks(2, trained, llama, options, timeout_s=60) for options in ({}, OFFLOADED))
    assert offloaded[0]["losses"] == offloaded[1]["losses"] == resident[0]["losses"]
    assert apart(offloaded[0], resident[0]) == apart(*offloaded) == 0


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_checkpoint_continues_wherever_the_moments_are(before: bool, after: bool, llama: str, tmp_path: Path):
    learner = learner_of(llama, offload_optimizer=before)
    learner.train(0, random_groups())
    learner.save(tmp_path / "saved")
    _, expected = learner.step(1, random_groups(seed=1, version=1))
    again = learner_of(llama, offload_optimizer=after)
    again.load(tmp_path / "saved")
    _, found = again.step(1, random_groups(seed=1, version=1))
    assert found.fingerprint == expected.fingerprint


def save_on_ranks(ranks: Ranks, model: str, folder: str) -> str:
    """Two steps with a checkpoint between them; the fingerprint after the second."""
    build.refuse_without_effect = lambda *_: None
    config = LearnConfig(learning_rate=1e-3, critic_learning_rate=1e-3, **OFFLOADED)
    fingerprints = []
    for _ in range(2):
        learner = build_learner(config, model=model, temperature=1.0, seed=0, ranks=ranks)
        if fingerprints:
            learner.load(folder)
        else:
            learner.train(0, random_groups())
            learner.stage()
            learner.write(folder)
        fingerprints.append(learner.step(1, random_groups(seed=1, version=1))[1].fingerprint)
    assert fingerprints[0] == fingerprints[1]
    return fingerprints[0]


def test_ranks_with_moments_in_host_memory_resume_equal_to_the_bit(llama: str, tmp_path: Path):
    found, _ = run_on_ranks(2, save_on_ranks, llama, str(tmp_path / "saved"), timeout_s=60)
    assert found


@torch.no_grad()
def test_a_network_in_host_memory_has_copies_only_while_it_computes(llama: str):
    network = AutoModelForCausalLM.from_pretrained(llama).eval()
    expected = network(input_ids=torch.arange(6)[None]).logits
    hosted = copy.deepcopy(network)
    compute_from_host(hosted, torch.device("cpu"))
    before = {name: p.data_ptr() for name, p in hosted.named_parameters()}
    during: dict[str, bool] = {}

    def look(*_: Any) -> None:
        during.update({name: p.data_ptr() != before[name] for name, p in hosted.named_parameters()})

    hosted.base_model.layers[1].register_forward_hook(look, prepend=True)
    torch.testing.assert_close(hosted(input_ids=torch.arange(6)[None]).logits, expected, rtol=0, atol=0)
    assert {name: p.data_ptr() for name, p in hosted.named_parameters()} == before
    assert all(copied == (".layers.0." not in name) for name, copied in during.items())


def test_on_a_cpu_neither_is_accepted(llama: str):
    words = (
        "offload_reference and .*offload_optimizer.*the learner computes on the CPU|a learner that computes on the CPU"
    )
    with pytest.raises(ValueError, match=words):
        LearnSection(**OFFLOADED)
    assert LearnSection(num_gpus=1, **OFFLOADED).offloaded == ["offload_reference", "offload_optimizer"]
    with pytest.raises(InputError, match=words):
        build_learner(LearnConfig(device="cpu", **OFFLOADED), model="not/read", temperature=1.0, seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"kl_coefficient": 0.0}, "loads no reference"), ({"lora": LoraConfig()}, "has no weights of its own")],
)
def test_a_reference_that_does_not_exist_is_not_kept_anywhere(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        LearnConfig(offload_reference=True, **changes)
