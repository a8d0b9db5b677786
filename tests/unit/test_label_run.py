"""Labelling a data set: what is written, what a second start does, what stops it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from solon.constitution import Constitution
from solon.errors import RunFailedError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judging import Item, Verdict
from solon.feedback.labelling.dataset import AnswerRow, SkippedRow, parse_row
from solon.feedback.labelling.label_run import Budget, LabelRun, Progress, finished_rows
from solon.records import Status
from solon.run_directory import RunDirectory

CONSTITUTION = Constitution.model_validate(
    {
        "schema": "solon.constitution/v1",
        "id": "c",
        "version": "1",
        "principles": [
            {"id": "long", "pairwise_question": "which is longer?", "pointwise_question": "is it long?"},
            {"id": "early", "weight": 3, "pairwise_question": "which is first?", "pointwise_question": "is it early?"},
        ],
    }
)


@dataclass
class LengthJudge:
    """Prefers the longer answer under every principle; `fails` says for which items it has no verdict."""

    name: str = "length"
    fails: Callable[[Item], Status | None] = lambda _: None
    delay_s: float = 0.0
    dies_after: float = math.inf
    asked: list[Item] = field(default_factory=list)
    usd: float = 0.0

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked += items
        await asyncio.sleep(self.delay_s)
        if len(self.asked) > self.dies_after:
            raise RunFailedError("the judge died")
        return [self._verdict(item) for item in items]

    def _verdict(self, item: Item) -> Verdict:
        failure = self.fails(item)
        if failure is not None:
            return Verdict(status=failure, margin=None, judge=self.name)
        lengths = [len(answer) for answer in item.answers]
        margin = float(lengths[0] - (lengths[1] if len(lengths) > 1 else 4))
        status = Status.OK if abs(margin) >= 0.1 else Status.TIE
        return Verdict(status=status, margin=margin, judge=self.name, questions=1, usd=self.usd)


def make_rows(number: int) -> list[AnswerRow]:
    return [parse_row(n, {"prompt": f"p{n}", "answers": ["a" * (n % 5 + 1), "bbb"]}) for n in range(1, number + 1)]


def make_run(path: Path, judge: Any, *, task: str = "pairwise", **settings: Any) -> LabelRun:
    return LabelRun(
        RunDirectory.reopen(path),
        judge,
        config=FeedbackConfig(task=task),
        constitution=CONSTITUTION,
        provenance={"run_id": "run"},
        **settings,
    )


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "preferences.jsonl").read_text().splitlines()]


async def test_the_longer_answer_is_chosen_in_the_columns_of_trl(tmp_path: Path):
    summary = await make_run(tmp_path, LengthJudge()).run(make_rows(5))
    rows = written(tmp_path)
    assert [(r["chosen"], r["rejected"]) for r in rows] == [
        ("bbb", "aa"),
        ("aaaa", "bbb"),
        ("aaaaa", "bbb"),
        ("bbb", "a"),
    ]  # p2 is a tie
    assert set(rows[0]) == {
        "prompt", "chosen", "rejected", "soft_label", "weight", "margin", "label_id", "row_id"
    }  # fmt: skip
    assert rows[2]["soft_label"] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert summary["status"] == "completed"
    assert summary["labels"] == {"total": 10, "valid": 10, "invalid": 0, "by_status": {"ok": 8, "tie": 2}}
    assert json.loads((tmp_path / "summary.json").read_text())["preferences"] == 4


async def test_a_second_start_asks_nothing_and_writes_the_same(tmp_path: Path):
    first = LengthJudge()
    await make_run(tmp_path, first).run(make_rows(30))
    before = (tmp_path / "preferences.jsonl").read_bytes()
    second = LengthJudge()
    summary = await make_run(tmp_path, second).run(make_rows(30))
    assert second.asked == []
    assert (tmp_path / "preferences.jsonl").read_bytes() == before
    assert summary["status"] == "completed"


async def test_what_was_labelled_before_the_judge_died_is_kept_and_the_rest_is_done_by_the_next_start(tmp_path: Path):
    whole = tmp_path / "whole"
    await make_run(whole, LengthJudge()).run(make_rows(300))
    broken = tmp_path / "broken"
    with pytest.raises(RunFailedError, match="died"):
        await make_run(broken, LengthJudge(dies_after=250)).run(make_rows(300))
    done = finished_rows(broken)
    assert 0 < len(done) < 300
    judge = LengthJudge()
    await make_run(broken, judge).run(make_rows(300))
    assert {item.conversation[0].content for item in judge.asked} == {
        row.prompt.messages[0].content for row in make_rows(300) if row.row_id not in done
    }
    assert (broken / "preferences.jsonl").read_bytes() == (whole / "preferences.jsonl").read_bytes()


async def test_a_budget_ends_the_start_and_the_next_one_goes_on(tmp_path: Path):
    first = await make_run(tmp_path, LengthJudge(delay_s=0.01), budget=Budget(labels=20)).run(make_rows(400))
    assert first["status"] == "budget"
    assert 20 <= first["labels"]["total"] <= 20 + 2 * 96
    assert first["rows"]["left"] == 400 - first["rows"]["done"]
    second = await make_run(tmp_path, LengthJudge()).run(make_rows(400))
    assert second["status"] == "completed"
    assert second["labels"]["total"] == 800


async def test_money_is_counted_and_limited(tmp_path: Path):
    summary = await make_run(tmp_path, LengthJudge(usd=0.5, delay_s=0.01), budget=Budget(usd=10)).run(make_rows(400))
    assert summary["status"] == "budget"
    assert summary["cost"]["usd"] == pytest.approx(0.5 * summary["labels"]["total"])


async def test_a_label_that_was_not_asked_for_lack_of_money_stays_to_be_done(tmp_path: Path):
    broke = LengthJudge(fails=lambda _: Status.BUDGET_SKIP)
    summary = await make_run(tmp_path, broke).run(make_rows(3))
    assert summary["rows"]["left"] == 3
    assert finished_rows(tmp_path) == set()


async def test_an_invalid_label_makes_no_preference(tmp_path: Path):
    judge = LengthJudge(fails=lambda item: Status.TIMEOUT if item.principle_id == "early" else None)
    summary = await make_run(tmp_path, judge).run(make_rows(20))
    assert summary["preferences"] == 0
    assert summary["labels"]["by_status"]["timeout"] == 20
    assert written(tmp_path) == []


async def test_answers_judged_alone_become_preferences_by_their_rewards(tmp_path: Path):
    await make_run(tmp_path, LengthJudge(), task="pointwise").run(make_rows(5))
    first = written(tmp_path)[0]
    assert (first["chosen"], first["rejected"]) == ("bbb", "aa")


async def test_stopping_finishes_what_is_under_way(tmp_path: Path):
    run = make_run(tmp_path, LengthJudge(delay_s=0.02), on_change=lambda p: run.stop() if p.rows else None)
    summary = await run.run(make_rows(400))
    assert summary["status"] == "stopped"
    assert 0 < summary["rows"]["done"] < 400
    assert len(finished_rows(tmp_path)) == summary["rows"]["done"]


async def test_skipped_rows_are_written_down(tmp_path: Path):
    skipped = [SkippedRow(number=4, row_id="x", reason="has no answers")]
    summary = await make_run(tmp_path, LengthJudge()).run(make_rows(2), skipped)
    assert summary["rows"]["skipped"] == 1
    assert json.loads((tmp_path / "quarantine.jsonl").read_text())["reason"] == "has no answers"


async def test_a_row_that_no_principle_speaks_about_is_done_without_a_label(tmp_path: Path):
    constitution = Constitution.model_validate(
        CONSTITUTION.model_dump(by_alias=True)
        | {"principles": [{"id": "x", "pairwise_question": "?", "applies_if": {"tags_any": ["never"]}}]}
    )
    run = LabelRun(
        RunDirectory.reopen(tmp_path),
        LengthJudge(),
        config=FeedbackConfig(task="pairwise"),
        constitution=constitution,
        provenance={"run_id": "run"},
    )
    summary = await run.run(make_rows(2))
    assert summary["labels"]["total"] == 0
    assert summary["status"] == "completed"
    assert len(finished_rows(tmp_path)) == 2


def test_progress_tells_what_is_left():
    progress = Progress(rows_total=10, rows_before=2)
    assert progress.left_s is None
    progress.rows = 4
    assert progress.left_s == pytest.approx(progress.elapsed_s, rel=0.5)
