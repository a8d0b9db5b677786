"""Repeated stages: every round is written out, starts from the round before, and takes the prompts that follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.align.file import AlignFile
from cluster.align.stages.drift import DriftStage
from cluster.align.stages.preferences import PreferencesStage
from solon.errors import InputError
from tests.unit.align.test_align_file import load

ROUNDS = """
[[stages]]
type = "sft"
demonstrations = "mine.jsonl"
[[stages]]
type = "iterate"
rounds = 2
[[stages.stages]]
type = "preferences"
max_prompts = 100
[[stages.stages]]
type = "reward_model"
[[stages.stages]]
type = "preferences"
name = "again"
judge = "reward_model"
[[stages.stages]]
type = "dpo"
preferences = "again"
[[stages.stages]]
type = "drift"
[[stages]]
type = "drift"
name = "end"
anchors = ["sft", "round-1-dpo", "models/other"]
"""


@pytest.fixture
def file(tmp_path: Path) -> AlignFile:
    return load(tmp_path, ROUNDS, "heldout_prompts='held.jsonl'")


def place(file: AlignFile, name: str) -> int:
    return [stage.name for stage in file.stages].index(name)


def test_every_stage_of_a_round_has_its_number(file: AlignFile):
    inner = ("preferences", "reward_model", "again", "dpo", "drift")
    names = [f"round-{turn}-{name}" for turn in (1, 2) for name in inner]
    assert [stage.name for stage in file.stages] == ["sft", *names, "end"]


def test_a_round_starts_from_the_policy_of_the_round_before(file: AlignFile):
    assert file.sources(place(file, "round-1-preferences"))["policy"].stage == "sft"
    assert file.sources(place(file, "round-2-preferences"))["policy"].stage == "round-1-dpo"
    assert file.sources(place(file, "round-2-reward_model"))["preferences"].stage == "round-2-preferences"


def test_names_within_a_round_are_those_of_the_round(file: AlignFile):
    for turn in (1, 2):
        sources = file.sources(place(file, f"round-{turn}-again"))
        assert (sources["judge"].stage, sources["judge"].product) == (f"round-{turn}-reward_model", "reward_model")
        assert file.sources(place(file, f"round-{turn}-dpo"))["preferences"].stage == f"round-{turn}-again"


def test_later_rounds_take_later_prompts_unless_they_are_told_not_to(tmp_path: Path, file: AlignFile):
    taken = [file.stages[place(file, f"round-{turn}-preferences")].skip_prompts for turn in (1, 2)]
    assert taken == [0, 100]
    same = load(
        tmp_path, ROUNDS.replace("rounds = 2", "rounds = 2\nfresh_prompts = false"), "heldout_prompts='held.jsonl'"
    )
    assert same.stages[place(same, "round-2-preferences")].skip_prompts == 0


def test_the_usual_number_of_prompts_counts_where_none_is_written(tmp_path: Path):
    file = load(tmp_path, ROUNDS.replace("max_prompts = 100\n", ""), "heldout_prompts='held.jsonl'")
    usual = PreferencesStage.model_fields["max_prompts"].default
    assert file.stages[place(file, "round-2-again")].skip_prompts == usual


def test_anchors_of_one_name_are_refused(tmp_path: Path):
    text = ROUNDS.replace('"models/other"', '"models/other", "models/else/other"')
    with pytest.raises(InputError, match="two anchors named 'other'"):
        load(tmp_path, text, "heldout_prompts='held.jsonl'")
    named = '[[stages]]\ntype = "sft"\nname = "start"\ndemonstrations = "x"\n[[stages]]\ntype = "drift"\npolicy = "a"\n'
    with pytest.raises(InputError, match="two anchors named 'start'"):
        load(tmp_path, named, "heldout_prompts='held.jsonl'")


def test_files_that_settings_name_are_part_of_what_a_result_depends_on(tmp_path: Path):
    text = '[[stages]]\ntype = "drift"\nanchors = ["models/other"]\nengine = { chat_template = "chat.jinja" }\n'
    file = load(tmp_path, text, "heldout_prompts='held.jsonl'")
    assert list(file.stages[0].further(file).values()) == ["chat.jinja"]


def test_drift_is_measured_from_the_start_and_every_policy_since(file: AlignFile):
    sources = file.sources(place(file, "round-2-drift"))
    anchors = {role: one.stage or one.path for role, one in sources.items() if role.startswith("policy.")}
    assert anchors == {"policy.start": "models/base", "policy.sft": "sft", "policy.round-1-dpo": "round-1-dpo"}
    assert sources["policy"].stage == "round-2-dpo"
    chosen = file.sources(place(file, "end"))
    assert {role for role in chosen if role.startswith("policy.")} == {
        "policy.sft",
        "policy.round-1-dpo",
        "policy.other",
    }
    stage = file.stages[-1]
    assert isinstance(stage, DriftStage)
    assert stage.settings(file)["anchors"] == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 2", "rounds = 0", "rounds"),
        ("rounds = 2", "round = 2", "did you mean `rounds`"),
        ('type = "dpo"', 'type = "iterate"', "holds another `iterate`"),
        ('type = "dpo"', 'type = "dop"', "did you mean `dpo`"),
        ('judge = "reward_model"', 'judge = "dpo"', "makes no reward_model before it"),
    ],
)
def test_mistakes_in_a_round_are_named(tmp_path: Path, old: str, new: str, message: str):
    with pytest.raises(InputError, match=message):
        load(tmp_path, ROUNDS.replace(old, new, 1), "heldout_prompts='held.jsonl'")
