"""Training on the grid of a format: what is trained, published, saved and compressed are the same weights."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from compression.export import export
from compression.live import LiveModel, load_model
from compression.units import uniform
from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.config import LoraConfig
from learners.core.grid import on_grid
from learners.core.policy import Policy
from learners.direct.config import DirectConfig
from learners.direct.pairs import AnswerPair
from learners.offline import train_on_pairs
from solon.errors import InputError
from solon.models.formats import format_named
from solon.models.unrounded import read_unrounded, trained_format
from tests.unit.learner_builders import random_groups, tensors_in, write_llama

GRID = "w4a16-g32"
FITTING = {"hidden_size": 64, "intermediate_size": 128}
IDS = torch.arange(3, 19)[None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"), **FITTING)


def make_learner(model: str, **changes: Any) -> Any:
    options = {"learning_rate": 1e-3, "critic_learning_rate": 1e-3, "grid": GRID} | changes
    return build_learner(LearnConfig(**options), model=model, temperature=1.0, seed=0)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("advantages", ["gae", "group"])
def test_the_published_weights_are_exactly_those_that_the_policy_computes_with(llama: str, advantages: str):
    learner = make_learner(llama, advantages=advantages)
    _, weights = learner.step(0, random_groups())
    served = AutoModelForCausalLM.from_pretrained(llama).eval()
    tensors = tensors_in(weights)
    served.load_state_dict(tensors, strict=False)
    served.tie_weights()
    assert torch.equal(logits_of(served), logits_of(learner.objective.policy.model))
    one = tensors["model.layers.0.mlp.up_proj.weight"]
    groups = one.reshape(len(one), -1, 32)
    assert max(len(group.unique()) for row in groups for group in row) <= 16
    assert set(tensors) == {name for name in served.state_dict() if name != "lm_head.weight"}


def test_a_saved_policy_that_is_compressed_to_its_grid_has_exactly_its_logits(llama: str, tmp_path: Path):
    learner = make_learner(llama)
    learner.step(0, random_groups())
    learner.save(tmp_path)
    policy = tmp_path / "policy"
    live = LiveModel.load(policy)
    assert trained_format(policy) == GRID
    export(policy, tmp_path / "small", live.units, uniform(live.units, GRID))
    trained = logits_of(learner.objective.policy.model)
    assert torch.equal(logits_of(load_model(policy)), trained)
    assert torch.equal(logits_of(load_model(tmp_path / "small")), trained)
    assert not (tmp_path / "small" / "unrounded").exists()


def test_a_learner_on_a_grid_resumes_equal_to_the_bit(llama: str, tmp_path: Path):
    learner = make_learner(llama)
    learner.step(0, random_groups())
    learner.save(tmp_path)
    _, expected = learner.step(1, random_groups(seed=1, version=1))
    resumed = make_learner(llama)
    resumed.load(tmp_path)
    assert resumed.step(1, random_groups(seed=1, version=1))[1].fingerprint == expected.fingerprint


def test_the_reference_of_a_policy_on_a_grid_is_the_policy_as_it_was(llama: str):
    policy = Policy(DirectConfig(grid=GRID), model=llama, temperature=1.0, reference=True)
    untouched = logits_of(AutoModelForCausalLM.from_pretrained(llama).eval())
    assert policy._reference is not None
    assert policy.grid is not None
    assert torch.equal(logits_of(policy._reference), untouched)
    assert not torch.equal(logits_of(policy.model), untouched)
    with policy.grid.off():
        assert torch.equal(logits_of(policy.model), untouched)


@pytest.mark.parametrize("grid", [GRID, "w8a8"])
def test_dpo_on_a_grid_prefers_the_better_answer_as_it_is_served(llama: str, tmp_path: Path, grid: str):
    pair = AnswerPair(prompt=(5, 6, 7), first=(8, 9, 1), second=(10, 11, 1))
    config = DirectConfig(grid=grid, learning_rate=3e-3, epochs=12)

    def margin(model: Any) -> float:
        with torch.no_grad():
            logprobs = [
                model(torch.tensor([[*pair.prompt, *answer]])).logits.log_softmax(-1)[0, 2:5]
                .gather(-1, torch.tensor(answer)[:, None]).sum()
                for answer in (pair.first, pair.second)
            ]  # fmt: skip
        return float(logprobs[0] - logprobs[1])

    train_on_pairs(llama, [pair] * 4, config, save_to=tmp_path / "tuned")
    live = LiveModel.load(tmp_path / "tuned")
    export(tmp_path / "tuned", tmp_path / "small", live.units, uniform(live.units, grid))
    assert margin(load_model(tmp_path / "small")) > margin(load_model(Path(llama))) + 3
    kept = read_unrounded(tmp_path / "tuned")
    rounded = live.model.state_dict()
    with ExitStack():
        for name, weight in kept.items():
            assert torch.equal(on_grid(weight, format_named(grid)), rounded[name])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grid": "w4a16-g46"}, r"got the format 'w4a16-g46'.*w4a16-g64"),
        ({"grid": "keep"}, r"rounds nothing"),
        ({"grid": GRID, "lora": LoraConfig(r=2)}, r"exclude each other"),
        ({"grid": "w8a8"}, r"engines do not round inputs"),
    ],
)
def test_a_grid_that_cannot_be_trained_on_is_refused(settings: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        LearnConfig(**settings)


def test_layers_that_do_not_fit_a_grid_are_named(tmp_path: Path):
    path = write_llama(tmp_path / "odd", hidden_size=48, intermediate_size=64)
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn\.q_proj is 48 x 48"):
        Policy(DirectConfig(grid=GRID), model=path, temperature=1.0)
