"""The output of `solon label` trains in TRL unchanged: a mixed file, both trainers that take preferences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from solon.constitution.constitution import Constitution
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.labelling.dataset import load_answers
from solon.feedback.labelling.label_run import LabelRun
from solon.files.json_text import json_text
from solon.runs.directory import RunDirectory
from solon.verdicts import Status, Verdict
from tests.models import make_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
STEPS = 5
GOOD, BAD = "the sky is blue", "it was green"


class Critic:
    """Prefers the answers that are good."""

    name = "critic"

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        margins = [4.0 if item.answers[0] == GOOD else -4.0 for item in items]
        return [Verdict(status=Status.OK, margin=margin, judge=self.name, questions=1) for margin in margins]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The data set from rows of every form, as TRL's users load it."""
    import asyncio

    from datasets import load_dataset

    folder = tmp_path_factory.mktemp("preferences")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "warm"}]
    rows: list[dict[str, Any]] = []
    for n in range(8):
        question = {"role": "user", "content": f"what color is the sky ? {n}"}
        rows += [
            {"prompt": question["content"], "answers": [BAD, GOOD]},
            {"prompt": [question], "answers": [GOOD, BAD], "id": f"one turn {n}"},
            {"prompt": [{"role": "system", "content": "polite"}, question], "chosen": BAD, "rejected": GOOD},
            {"prompt": [*turns, question], "chosen": [{"role": "assistant", "content": GOOD}], "rejected": BAD},
        ]
    answers = folder / "answers.jsonl"
    answers.write_text("".join(json_text(row) + "\n" for row in rows), encoding="utf-8")
    constitution = Constitution.model_validate(
        {
            "schema": "solon.constitution/v1",
            "id": "c",
            "version": "1",
            "principles": [{"id": "true", "pairwise_question": "Which answer is true?"}],
        }
    )
    run = LabelRun(
        RunDirectory.reopen(folder / "labels"),
        Critic(),
        config=FeedbackConfig(task="pairwise"),
        constitution=constitution,
        provenance={"run_id": "labels"},
    )
    source = load_answers(answers, least=2)
    assert not source.skipped
    summary = asyncio.run(run.run(source.rows))
    assert summary["preferences"] == len(rows)
    written = str(folder / "labels" / "preferences.jsonl")
    return load_dataset("json", data_files=written, split="train", cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("trl") / "model")


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_dpo_trains_on_a_mixed_file_without_conversion(preferences: Any, model: Path, tmp_path: Path):
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(model=str(model), args=DPOConfig(**settings(tmp_path)), train_dataset=preferences)
    trainer.train()
    found = losses(trainer)
    assert found[0] == pytest.approx(0.693, abs=0.05)
    assert found[-1] < found[0]
    # The prompt keeps its own tokens: the template's turn markers around it, the answer behind them.
    tokenizer = trainer.processing_class
    shown = [tokenizer.decode(row["prompt_ids"]) for row in trainer.train_dataset]
    assert all(text.rstrip().endswith("<|assistant|>") for text in shown)
    assert sum("<|system|>" in text for text in shown) == 8


def test_a_reward_model_trains_on_a_mixed_file_and_no_column_acts_as_a_margin(
    preferences: Any, model: Path, tmp_path: Path
):
    from trl import RewardConfig, RewardTrainer

    trainer = RewardTrainer(model=str(model), args=RewardConfig(**settings(tmp_path)), train_dataset=preferences)
    trainer.train()
    found = losses(trainer)
    # A required margin of 4 nats would start the loss at 4.
    assert found[0] == pytest.approx(0.693, abs=0.3)
    assert found[-1] < found[0]
