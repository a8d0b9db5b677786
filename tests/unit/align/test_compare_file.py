"""Comparison files: methods become alignments of one start, judge and data, as large as the budget."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.align.compare_file import DRIFT, CompareFile
from cluster.align.sizes import Scaled, next_size, scaled
from solon.errors import InputError

FILE = """
policy = "models/base"
judge = "models/judge"
prompts = "prompts.jsonl"
constitution = "constitution.yaml"
heldout_prompts = "held.jsonl"
seeds = [0, 1]
[label]
write = { answers = 4 }
[evaluate]
judge = "models/auditor"
sampling = { max_tokens = 32 }
[[methods]]
name = "dpo"
scales = ["preferences.max_prompts"]
[[methods.stages]]
type = "preferences"
max_prompts = 100
[[methods.stages]]
type = "dpo"
[[methods]]
name = "ppo"
scales = ["train.run.steps"]
[[methods.stages]]
type = "rlaif"
name = "train"
run = { steps = 10, learn = { objective = "ppo" } }
"""


def load(tmp_path: Path, text: str = FILE, *overrides: str) -> CompareFile:
    (tmp_path / "compare.toml").write_text(text)
    return CompareFile.load(tmp_path / "compare.toml", overrides=overrides)


def test_a_method_is_an_alignment_with_a_measurement_of_its_drift(tmp_path: Path):
    file = load(tmp_path)
    found = file.alignment(file.methods[0], 1, 1.0)
    assert [stage.name for stage in found.stages] == ["preferences", "dpo", DRIFT]
    assert (found.policy, found.judge, found.seed) == ("models/base", "models/judge", 1)
    assert found.label == {"write": {"answers": 4}}
    assert found.stages[-1].max_tokens == 32
    bare = load(tmp_path, FILE, "drift=false")
    assert [stage.name for stage in bare.alignment(bare.methods[0], 0, 1.0).stages] == ["preferences", "dpo"]


def test_a_size_multiplies_the_keys_that_scale_and_changes_nothing_else(tmp_path: Path):
    file = load(tmp_path)
    large = [file.alignment(method, 0, 2.5) for method in file.methods]
    assert large[0].stages[0].max_prompts == 250
    assert large[1].stages[0].run == {"steps": 25, "learn": {"objective": "ppo"}}
    assert file.alignment(file.methods[0], 0, 1.0).stages[0].max_prompts == 100


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('judge = "models/auditor"', 'judge = "models/judge"', "method dpo: .*which labels too, expected another"),
        ('judge = "models/auditor"', 'judge = "models/auditor"\nevaluator = "nursery"', "who grades"),
        ('judge = "models/auditor"\n', "", "who grades"),
        ('judge = "models/auditor"', 'evaluator = "nursey"', "did you mean `nursery`"),
        ('constitution = "constitution.yaml"\n', "", "takes the key `constitution`"),
        ('type = "dpo"\n', 'type = "reward_model"\n', "method dpo makes no policy"),
        ("run = { steps", 'judge = "models/auditor"\nrun = { steps', "method ppo: .*which labels too"),
        (
            "write = { answers = 4 }",
            'feedback = { jury = { judges = ["models/auditor"] } }',
            "method dpo: .*labels too",
        ),
        ('name = "ppo"', 'name = ".."', "name"),
        ("seeds = [0, 1]", "seeds = [0, 2147483648]", "seeds"),
        ('name = "ppo"', 'name = "dpo"', "two methods are named 'dpo'"),
        ('name = "ppo"', 'name = "../ppo"', "name"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "expected different numbers"),
        ('"preferences.max_prompts"', '"preference.max_prompts"', "names 'preference.max_prompts', expected a stage"),
        ('"preferences.max_prompts"', '"preferences.max_labels"', "that is set to a whole number"),
        ('scales = ["train.run.steps"]\n', "", ""),
        ('type = "dpo"\n', 'type = "dop"\n', "method dpo: stages.*did you mean `dpo`"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path: Path, old: str, new: str, message: str):
    text = FILE.replace(old, new, 1)
    if not message:
        load(tmp_path, text)
        with pytest.raises(InputError, match="the method 'ppo' has no scales"):
            load(tmp_path, text, "budget_s=60")
        return
    with pytest.raises(InputError, match=message):
        load(tmp_path, text)


def test_methods_are_not_set_on_the_command_line(tmp_path: Path):
    with pytest.raises(InputError, match="methods are set in the file"):
        load(tmp_path, FILE, "methods=[]")


@given(st.integers(1, 10_000), st.floats(0.001, 100))
def test_a_scaled_number_stays_whole_and_positive(number: int, factor: float):
    stages: list[dict[str, Any]] = [{"type": "rlaif", "run": {"steps": number}}]
    (found,) = scaled(copy.deepcopy(stages), Scaled(keys=["rlaif.run.steps"], factor=factor), "x")
    assert type(found["run"]["steps"]) is int
    assert found["run"]["steps"] == max(1, round(number * factor))


@given(st.floats(0, 50), st.floats(0.05, 20), st.floats(10, 1000))
def test_sizes_reach_the_budget_when_costs_are_a_start_and_a_share_of_the_size(
    fixed: float, each: float, budget: float
):
    """As they are: engines start, then work for as long as there is work."""
    if fixed > budget / 2:
        return
    size, attempts = 1.0, 0
    while (larger := next_size(size, fixed + each * size, budget, 0.15)) is not None:
        size, attempts = larger, attempts + 1
        assert attempts < 60
    assert fixed + each * size == pytest.approx(budget, rel=0.15)


def test_an_auditor_under_another_name_is_still_the_judge(tmp_path: Path):
    (tmp_path / "models" / "judge").mkdir(parents=True)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "models" / "judge")
    with pytest.raises(InputError, match="which labels too"):
        load(tmp_path, FILE.replace("models/auditor", "elsewhere"))


def test_paths_are_relative_to_the_file_also_in_the_settings_of_the_evaluation(tmp_path: Path):
    for name in ("held.jsonl", "chat.jinja"):
        (tmp_path / name).write_text("")
    text = FILE.replace(
        'judge = "models/auditor"', 'judge = "models/auditor"\nengine = { chat_template = "chat.jinja" }'
    )
    file = load(tmp_path, text)
    assert file.heldout_prompts == str(tmp_path / "held.jsonl")
    assert file.evaluate.engine.chat_template == str(tmp_path / "chat.jinja")
