"""A state that is written while steps run is that of the moment at which it was staged, alone and among ranks."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.build import Learner, build_learner
from learners.config import LearnConfig
from learners.core.config import LoraConfig
from learners.core.processes import run_on_ranks
from learners.core.ranks import ALONE, Ranks
from learners.core.sharding import full
from learners.core.staging import Staging
from tests.unit.learner_builders import random_groups, write_llama

STEPS = 3


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


def make(model: str, ranks: Ranks, lora: bool) -> Learner:
    adapters = LoraConfig(r=4) if lora else None
    config = LearnConfig(learning_rate=1e-3, critic_learning_rate=1e-3, lora=adapters, kl_coefficient=0.05)
    return build_learner(config, model=model, temperature=1.0, seed=0, ranks=ranks)


def train(learner: Learner, first: int) -> dict[str, Tensor]:
    """Steps from `first` on; whole weights of all parts."""
    for step in range(first, STEPS):
        learner.step(step, random_groups(5, 3, seed=step, version=step))
    return {
        f"{part}/{name}": full(parameter.detach()).clone()
        for part, one in learner.optimizers.items()
        for name, parameter in one.parameters.items()
    }


def beside_steps(ranks: Ranks, model: str, folder: str, lora: bool) -> dict[str, Any]:
    """Step 0, the same state written at once and beside two steps, then the two steps from what was written."""
    learner, place = make(model, ranks, lora), Path(folder)
    learner.step(0, random_groups(5, 3, seed=0, version=0))
    learner.save(place / "at once")
    learner.stage()
    errors: list[BaseException] = []

    def write() -> None:
        try:
            learner.write(place / "beside")
        except BaseException as error:
            errors.append(error)

    writing = threading.Thread(target=write)
    writing.start()
    undisturbed = train(learner, 1)
    writing.join()
    assert not errors, errors
    resumed = make(model, ranks, lora)
    resumed.load(place / "beside")
    assert resumed.version == 1
    again = train(resumed, 1)
    return {"same": [name for name in undisturbed if torch.equal(undisturbed[name], again[name])], "all": [*again]}


def files_of(folder: Path) -> dict[str, bytes]:
    """But for the file in which ranks keep names that torch invents."""
    found = {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("learner.shards/.")}


@pytest.mark.parametrize(
    ("size", "lora"), [(1, False), (1, True), (2, False), (2, True)], ids=["alone", "alone-lora", "ranks", "ranks-lora"]
)
def test_what_is_written_beside_steps_is_the_staged_moment_to_the_byte(
    llama: str, tmp_path: Path, size: int, lora: bool
):
    arguments = (llama, str(tmp_path), lora)
    results = [beside_steps(ALONE, *arguments)] if size == 1 else run_on_ranks(2, beside_steps, *arguments)
    for found in results:
        assert found["same"] == found["all"]
        assert any(name.startswith("critic/") for name in found["all"])
    at_once, beside = (files_of(tmp_path / name) for name in ("at once", "beside"))
    assert at_once == beside
    assert json.loads(beside["learner.json"])["version"] == 1
    assert {"policy/model.safetensors", "canaries.json"} <= set(beside)


def test_a_step_waits_for_the_copy_before_its_optimiser_moves(llama: str, monkeypatch: pytest.MonkeyPatch):
    learner = make(llama, ALONE, lora=False)
    copy, may_copy, moved = Staging._copy, threading.Event(), threading.Event()
    monkeypatch.setattr(Staging, "_copy", lambda self, stream: may_copy.wait(10) and copy(self, stream))
    policy = learner.optimizers["policy"]
    apply = policy.apply
    monkeypatch.setattr(policy, "apply", lambda step: (moved.set(), apply(step)))
    learner.stage()
    training = threading.Thread(target=lambda: learner.step(0, random_groups(5, 3, seed=0, version=0)))
    training.start()
    assert not moved.wait(1.0)
    may_copy.set()
    training.join()
    assert moved.is_set()


def test_a_weight_in_the_state_and_in_the_policy_is_copied_once():
    weight = torch.arange(6.0)
    staging = Staging(ALONE, copies=True)
    kept = staging.keep(weight)
    assert staging.keep(weight.detach()) is kept
    staging.begin()
    staging.wait()
    weight.zero_()
    assert kept.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_write_that_failed_may_be_repeated_and_a_written_state_is_freed(llama: str, tmp_path: Path):
    learner = make(llama, ALONE, lora=False)
    learner.stage()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        learner.write(tmp_path / "file")
    learner.write(tmp_path / "saved")
    with pytest.raises(ValueError, match="nothing is staged, expected a state to write"):
        learner.write(tmp_path / "again")
