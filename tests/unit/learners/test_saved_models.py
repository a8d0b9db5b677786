"""Files beside saved weights: a generation config that can be saved, and the unchanged tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from compression.quantise import quantise_model
from learners.build import build_learner
from learners.config import LearnConfig
from learners.networks.student import Student
from solon.engines.model_files import copy_companions, repair_generation_config
from tests.unit.learner_builders import write_llama

SAMPLED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [1, 2], "pad_token_id": 0}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as many are published: parameters of sampling without `do_sample`."""
    directory = tmp_path_factory.mktemp("policy")
    write_llama(directory, hidden_size=64, tied=False)
    (directory / "generation_config.json").write_text(json.dumps(SAMPLED))
    return directory


def saved_by_learner(policy: Path, target: Path) -> Path:
    learner = build_learner(LearnConfig(advantages="group"), model=str(policy), temperature=1.0, seed=0)
    learner.save(target)
    return target / "policy"


def saved_by_student(policy: Path, target: Path) -> Path:
    Student.load(policy).save(target)
    return target


def saved_by_quantising(policy: Path, target: Path) -> Path:
    quantise_model(policy, target, "w8a8")
    return target


SAVERS = [saved_by_learner, saved_by_student, saved_by_quantising]


@pytest.mark.parametrize("save", SAVERS)
def test_a_model_that_samples_without_saying_so_is_saved_and_keeps_its_values(policy: Path, tmp_path: Path, save: Any):
    saved = json.loads((save(policy, tmp_path / "saved") / "generation_config.json").read_text())
    assert saved["do_sample"] is True
    assert {name: saved[name] for name in SAMPLED} == SAMPLED


@pytest.mark.parametrize("save", SAVERS)
def test_tokenizer_files_are_saved_byte_for_byte(policy: Path, tmp_path: Path, save: Any):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    names = {path.name for path in policy.iterdir() if path.name.startswith(("tokenizer", "chat_template", "special"))}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    saved = save(policy, tmp_path / "saved")
    assert all((saved / name).read_bytes() == (policy / name).read_bytes() for name in names)
    turns = [{"role": "user", "content": "w3 w4 <eos> w5"}]
    again = AutoTokenizer.from_pretrained(saved)
    assert again.apply_chat_template(turns, tokenize=True) == tokenizer.apply_chat_template(turns, tokenize=True)


def test_a_saved_policy_gives_the_log_probs_of_the_original(policy: Path, tmp_path: Path):
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    logits = [
        AutoModelForCausalLM.from_pretrained(path).eval()(ids).logits
        for path in (policy, saved_by_learner(policy, tmp_path))
    ]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("settings", "kept", "lost"),
    [
        ({"temperature": 0.6, "top_p": 0.95}, {"do_sample": True, "temperature": 0.6, "top_p": 0.95}, []),
        ({"top_k": 20, "use_cache": False}, {"do_sample": True, "top_k": 20, "use_cache": False}, []),
        ({"temperature": 0.0}, {}, ["temperature"]),
        ({"temperature": 0.6, "do_sample": False}, {"do_sample": False}, ["temperature"]),
        ({"temperature": 0.6, "length_penalty": 2.0}, {"do_sample": True, "temperature": 0.6}, ["length_penalty"]),
        ({"pad_token_id": -1, "eos_token_id": [3, 4]}, {"eos_token_id": [3, 4]}, ["pad_token_id"]),
        ({"output_scores": True}, {}, ["output_scores"]),
        ({"num_beams": 4, "length_penalty": 2.0, "top_p": 0.5, "do_sample": True, "early_stopping": True}, None, []),
    ],
)
def test_a_generation_config_keeps_what_can_be_saved(settings: Any, kept: Any, lost: list[str], tmp_path: Path):
    model = SimpleNamespace(generation_config=GenerationConfig.from_dict(settings))
    dropped = repair_generation_config(model)
    assert [text.split(" = ")[0] for text in dropped] == lost
    model.generation_config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    saved.pop("transformers_version")
    assert saved == (settings if kept is None else kept)


def test_dropped_settings_are_named(policy: Path, tmp_path: Path):
    student = Student.load(policy)
    student.network.generation_config = GenerationConfig.from_dict({"pad_token_id": -1})
    with pytest.warns(UserWarning, match="saved without pad_token_id = -1"):
        student.save(tmp_path)


def test_every_format_of_tokenizer_is_copied_and_no_code(tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    names = ["tokenizer.json", "tokenizer.model", "spiece.model", "qwen.tiktoken", "vocab.json", "merges.txt"]
    names += ["chat_template.jinja", "additional_chat_templates/tools.jinja", "added_tokens.json"]
    for name in [*names, "tokenization_custom.py", "tokenizer_custom.py", "config.json", "model.safetensors"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    assert sorted(copy_companions(source, target)) == sorted(names)
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()) == sorted(names)
