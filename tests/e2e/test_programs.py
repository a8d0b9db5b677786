"""A run whose rewards are a person's own functions: no judge model at all, and mixed with one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Run, environment, solon_command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
FUNCTIONS = """
def short(messages, answer):
    words = len(answer.split())
    if words == 7:
        raise ValueError("seven words")
    return (6 - words) / 2

def spoken(messages, answer):
    return messages[-1]["role"] == "user" and bool(answer)
"""
CONSTITUTION = """
schema: solon.constitution/v1
id: mine
version: 1.0.0
language: en
license: Apache-2.0
principles:
  - {id: short, pointwise_question: "Is the answer short?", weight: 2.0}
  - {id: spoken, pointwise_question: "Does the answer speak to the user?"}
"""
RUN = """
policy = "nursery:policy"
judge = "rewards.toml"
prompts = "nursery:train_prompts"
constitution = "mine.yaml"
steps = 12
rollout = { group_size = 8, max_tokens = 24, max_model_len = 128, num_cpus = 0.5 }
judging = { num_cpus = 0.5 }
ledger = { batch_groups = 8 }
learn = { objective = "online_dpo", learning_rate = 4e-4, num_cpus = 0.5 }
"""


@pytest.fixture
def folder(nursery: Any, tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    (tmp_path / "rewards.toml").write_text('[programs]\nshort = "rewards.py:short"\nspoken = "rewards.py:spoken"\n')
    (tmp_path / "mine.yaml").write_text(CONSTITUTION)
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path


def solon(folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        solon_command(*arguments), cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_policy_learns_from_functions_alone_and_an_exception_is_no_reward(folder: Path):
    assert "by programs: they were not called" in solon(folder, "check", "run.toml")
    solon(folder, "train", "run.toml", "--name", "mine")
    run = Run(0, "", folder / "runs" / "mine")
    labels = run.table("labels")
    assert {label["principle_id"] for label in labels} == {"short", "spoken"}
    invalid = [label for label in labels if label["status"] != "ok"]
    assert invalid
    assert {label["status"] for label in invalid} == {"engine_error"}
    assert all(label["margin"] is None for label in invalid)
    assert run.summary["labels"]["invalid"] == len(invalid)
    rewards = [step["learn/reward/mean"] for step in run.metrics]
    assert sum(rewards[-4:]) > sum(rewards[:4])


def test_programs_and_a_judge_share_the_principles_and_their_labels_say_who_decided(folder: Path):
    text = (folder / "mine.yaml").read_text()
    text += '  - {id: polite, pointwise_question: "Is the answer polite?"}\n'
    (folder / "mine.yaml").write_text(text)
    solon(
        folder, "train", "run.toml", "--name", "mixed", "--steps", "2", "--set", "judge=nursery:judge",
        "--set", "feedback.programs=rewards.toml", "--set", "feedback.template=compact",
        "--set", "judging.max_model_len=256",
    )  # fmt: skip
    labels = Run(0, "", folder / "runs" / "mixed").table("labels")
    by_judge = {(label["principle_id"], "programs" in label["judge"]) for label in labels}
    assert by_judge == {("short", True), ("spoken", True), ("polite", False)}
