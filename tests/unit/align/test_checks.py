"""What would fail after hours is refused before the first stage, with the stage's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.align.checks import check_alignment
from solon.errors import InputError
from tests.unit.align.test_align_file import load
from tests.unit.learner_builders import write_llama

RULES = """
schema: solon.constitution/v1
id: mine
version: 1.0.0
language: en
license: Apache-2.0
principles:
  - id: polite
    pairwise_question: Which answer is more polite?
    pointwise_question: Is the answer polite?
"""
REWARDED = """
[[stages]]
type = "reward_model"
preferences = "pairs.jsonl"
members = 2
[[stages]]
type = "rlaif"
judge = "reward_model"
run = { judging = { backend = "transformers" }, feedback = { task = "pointwise" } }
"""


@pytest.fixture
def head(tmp_path: Path) -> str:
    write_llama(tmp_path / "base")
    (tmp_path / "prompts.jsonl").write_text('{"question": "what color is the sky ?"}\n')
    (tmp_path / "constitution.yaml").write_text(RULES)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "hi", "chosen": "a", "rejected": "b"}\n')
    return (
        'policy = "base"\nprompts = "prompts.jsonl"\nconstitution = "constitution.yaml"\n[data]\ncolumn = "question"\n'
    )


def check(tmp_path: Path, head: str, text: str = REWARDED) -> None:
    check_alignment(load(tmp_path, text, head=head), lambda name: name)


def test_a_sound_file_passes_also_with_a_column_of_its_own(tmp_path: Path, head: str):
    check(tmp_path, head)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('column = "question"', 'column = "prompt"', r"stages\[2\] \(rlaif\): .*set data.column = 'question'"),
        ('backend = "transformers"', 'backend = "vllm"', r"has 2 members.*set run.judging.backend = \"transformers\""),
        ('task = "pointwise"', 'task = "score"', "has one number for an answer; expected pointwise or pairwise"),
        ('"base"', '"nowhere"', r"stages\[1\] \(reward_model\): policy model nowhere does not exist"),
    ],
)
def test_what_cannot_work_is_named_with_its_stage(tmp_path: Path, head: str, old: str, new: str, message: str):
    with pytest.raises(InputError, match=message):
        check(tmp_path, head.replace(old, new), REWARDED.replace(old, new))


def test_a_constitution_without_the_question_that_is_asked_is_refused(tmp_path: Path, head: str):
    path = tmp_path / "constitution.yaml"
    path.write_text(RULES.replace("    pointwise_question: Is the answer polite?\n", ""))
    with pytest.raises(InputError, match="pointwise"):
        check(tmp_path, head)
    path.write_text("principles: []\n")
    with pytest.raises(InputError, match=r"stages\[2\] \(rlaif\)"):
        check(tmp_path, head)


@pytest.mark.parametrize("content", [None, ""])
def test_a_data_file_that_is_missing_or_empty_is_named_before_earlier_stages_are_paid_for(
    tmp_path: Path, head: str, content: str | None
):
    (tmp_path / "pairs.jsonl").unlink()
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"stages\[1\] \(reward_model\): .*pairs\.jsonl"):
        check(tmp_path, head)


def test_an_auditor_that_labels_under_another_name_is_refused(tmp_path: Path, head: str):
    write_llama(tmp_path / "judge")
    (tmp_path / "alias").symlink_to(tmp_path / "judge")
    (tmp_path / "heldout.jsonl").write_text('{"question": "why ?"}\n')
    stages = '[[stages]]\ntype = "preferences"\n[[stages]]\ntype = "evaluate"\njudge = "alias"\n'
    with pytest.raises(InputError, match="labels for training, and a policy learns to please it"):
        check(tmp_path, 'judge = "judge"\nheldout_prompts = "heldout.jsonl"\n' + head, stages)


def test_answers_that_leave_no_room_for_a_prompt_are_refused(tmp_path: Path, head: str):
    (tmp_path / "heldout.jsonl").write_text('{"question": "why ?"}\n')
    stages = '[[stages]]\ntype = "drift"\nanchors = ["base"]\nmax_tokens = 100000\n'
    with pytest.raises(
        InputError, match=r"answers may have 100000 tokens, and the policy's context has .*lower max_tok"
    ):
        check(tmp_path, 'heldout_prompts = "heldout.jsonl"\n' + head, stages)
