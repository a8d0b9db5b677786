"""Alignment files: stages find their inputs, and mistakes are named before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.align.base import PRODUCTS
from cluster.align.file import AlignFile
from cluster.align.plan import Planner
from cluster.align.stages import known_stages
from cluster.align.stages.preferences import best_answers
from solon.artifacts.store import Store
from solon.errors import InputError

FAKE = "sk-ant-api03-" + "abcdefgh" * 3
HEAD = """
policy = "models/base"
judge = "models/judge"
prompts = "prompts.jsonl"
constitution = "constitution.yaml"
"""


def load(tmp_path: Path, text: str, *overrides: str, head: str = HEAD) -> AlignFile:
    path = tmp_path / "align.toml"
    path.write_text(head + text)
    return AlignFile.load(path, overrides=overrides)


def test_every_stage_makes_known_products_and_has_a_type_of_its_own():
    assert sorted(known_stages()) == [
        "compress",
        "constitutional",
        "dpo",
        "drift",
        "evaluate",
        "kto",
        "preferences",
        "reward_model",
        "rlaif",
        "sft",
    ]
    for kind, stage in known_stages().items():
        assert stage.makes, kind
        assert set(stage.makes) <= set(PRODUCTS), kind


def test_a_stage_takes_the_latest_result_a_named_one_or_a_path(tmp_path: Path):
    file = load(
        tmp_path,
        """
        [[stages]]
        type = "preferences"
        [[stages]]
        type = "sft"
        [[stages]]
        type = "dpo"
        [[stages]]
        type = "dpo"
        policy = "sft"
        preferences = "mine.jsonl"
        """,
    )
    assert [stage.name for stage in file.stages] == ["preferences", "sft", "dpo", "dpo-2"]
    assert file.sources(0)["policy"].path == "models/base"
    assert file.sources(1)["demonstrations"].stage == "preferences"
    assert (file.sources(2)["policy"].stage, file.sources(2)["preferences"].stage) == ("sft", "preferences")
    assert (file.sources(3)["policy"].stage, file.sources(3)["preferences"].path) == ("sft", "mine.jsonl")


def test_paths_are_relative_to_the_file(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    file = load(tmp_path, '[[stages]]\ntype = "preferences"\n')
    assert file.prompts == str(tmp_path / "prompts.jsonl")
    assert file.judge == "models/judge"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no stages, expected \[\[stages\]\] with a type"),
        ("[[stages]]\nname = 'x'\n", r"stages\[1\] has no type, expected one of compress, constitutional, dpo"),
        ("[[stages]]\ntype = 'dop'\n", "has the type 'dop'.*did you mean `dpo`"),
        ("[[stages]]\ntype = 'dpo'\nbeta = 1\n", "beta"),
        ("[[stages]]\ntype = 'dpo'\nlearn = { beta = -1 }\n", "learn.beta"),
        (
            "[[stages]]\ntype = 'dpo'\n",
            "takes a file of preferences, and there is none; add a stage of",
        ),
        (
            "[[stages]]\ntype = 'dpo'\npreferences = 'later'\n[[stages]]\ntype = 'preferences'\nname = 'later'\n",
            "takes its preferences from the stage 'later', which makes no preferences before it",
        ),
        (
            "[[stages]]\ntype = 'preferences'\nname = 'a'\n[[stages]]\ntype = 'sft'\nname = 'a'\n",
            "two stages are named 'a'",
        ),
        ("[[stages]]\ntype = 'preferences'\nname = 'a/b'\n", "60 letters, digits"),
        (
            "[[stages]]\ntype = 'evaluate'\nevaluator = 'nursery'\n",
            "takes the key `heldout_prompts`",
        ),
        ("[[stages]]\ntype = 'rlaif'\nrun = { stepz = 3 }\n", "stepz"),
        ("[[stages]]\ntype = 'rlaif'\nrun = { policy = 'x' }\n", "run.policy is set by the stage"),
        ("[[stages]]\ntype = 'preferences'\n[label]\nkey = '" + FAKE + "'\n", "secret"),
    ],
)
def test_mistakes_are_named_with_what_to_do(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=message):
        load(tmp_path, text)


def test_stages_are_not_set_on_the_command_line_and_other_keys_are(tmp_path: Path):
    stages = '[[stages]]\ntype = "preferences"\n'
    assert load(tmp_path, stages, "seed=3").seed == 3
    with pytest.raises(InputError, match="stages are set in the file"):
        load(tmp_path, stages, "stages=[]")


PROGRAMS = """
    [label.feedback]
    programs = "rewards.toml"
    [[stages]]
    type = "preferences"
    [[stages]]
    type = "rlaif"
    judge = "rewards.toml"
    run = { feedback = { programs = "rewards.toml" }, learn = { objective = "online_dpo" } }
"""


def folder_of_programs(folder: Path) -> Path:
    """What an alignment with programs names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("prompts.jsonl", "constitution.yaml", "data.jsonl"):
        (folder / name).write_text("{}")
    for name in ("models/base", "models/judge"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    (folder / "r.py").write_text("def f(messages, answer):\n    return 1\n")
    (folder / "rewards.toml").write_text('[programs]\na = "r.py:f"\n')
    return folder


def keys_of_programs(folder: Path) -> list[Any]:
    planner = Planner(load(folder, PROGRAMS), Store(folder / "artifacts"), lambda name: name)
    return [planner.step(number, {}, again=False).key for number in range(2)]


def test_settings_that_name_files_make_results_depend_on_their_content(tmp_path: Path):
    file = load(folder_of_programs(tmp_path), PROGRAMS)
    assert file.label["feedback"]["programs"] == str(tmp_path / "rewards.toml")
    before = keys_of_programs(tmp_path)
    assert keys_of_programs(tmp_path) == before
    (tmp_path / "r.py").write_text("def f(messages, answer):\n    return 2\n")
    after = keys_of_programs(tmp_path)
    assert [one["files"] for one in after] != [one["files"] for one in before]
    assert all(one != other for one, other in zip(before, after, strict=True))
    modules = file.stages[1].modules()
    assert "learners.objectives.online_dpo" in modules


def test_results_of_a_submitted_alignment_are_found_after_ray_unpacked_its_folder_elsewhere(tmp_path: Path):
    copies = tmp_path / "runtime_resources" / "working_dir_files"
    first, second = (folder_of_programs(copies / f"_ray_pkg_{n}") for n in (1, 2))
    assert keys_of_programs(first) == keys_of_programs(second)
    (second / "r.py").write_text("def f(messages, answer):\n    return 2\n")
    assert keys_of_programs(first) != keys_of_programs(second)


def test_secrets_in_stages_are_refused(tmp_path: Path):
    token = "hf_" + "abcdefghijklm" * 2 + "abcdefgh"
    with pytest.raises(InputError, match="secret"):
        load(tmp_path, f"[[stages]]\ntype = 'sft'\ndemonstrations = 'https://u:{token}@h/x'\n")


def test_the_best_answer_has_the_largest_sum_of_margins():
    def row(chosen: str, rejected: str, margin: float) -> dict[str, object]:
        turn = [{"role": "assistant", "content": chosen}], [{"role": "assistant", "content": rejected}]
        return {"row_id": "1", "prompt": "p", "chosen": turn[0], "rejected": turn[1], "judge_margin": margin}

    found = best_answers([row("a", "b", 1.0), row("b", "c", 3.0), row("c", "a", 0.5)])
    assert [one["completion"][0]["content"] for one in found] == ["b"]
