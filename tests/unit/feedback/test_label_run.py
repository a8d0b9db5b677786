"""Labelling a data set: its output, a second start, and the ways in which it stops."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.constitution.constitution import Constitution
from solon.errors import RunFailedError
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.labelling.budget import Budget
from solon.feedback.labelling.dataset import AnswerRow, SkippedRow, parse_row
from solon.feedback.labelling.finished import finished_rows, read_labels
from solon.feedback.labelling.label_run import LabelRun, Progress
from solon.feedback.labelling.remedies import REMEDIES, why_nothing
from solon.feedback.prompting.swap import SwapConfig
from solon.runs.directory import RunDirectory
from solon.verdicts import Status, Verdict

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
    """Prefers the longer answer under every principle; `fails` tells for which items it has no verdict."""

    name: str = "length"
    fails: Callable[[Item], Status | None] = lambda _: None
    delay_s: float = 0.0
    dies_after: float = math.inf
    asked: list[Item] = field(default_factory=list)
    usd: float = 0.0
    at_once: int = 0
    most_at_once: int = 0

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked += items
        self.at_once += len(items)
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay_s)
        self.at_once -= len(items)
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


def said(row: dict[str, Any], column: str) -> str:
    (message,) = row[column]
    assert message["role"] == "assistant"
    return message["content"]


async def test_the_longer_answer_is_chosen_in_the_columns_of_trl(tmp_path: Path):
    summary = await make_run(tmp_path, LengthJudge()).run(make_rows(5))
    rows = written(tmp_path)
    assert [(said(r, "chosen"), said(r, "rejected")) for r in rows] == [
        ("bbb", "aa"),
        ("aaaa", "bbb"),
        ("aaaaa", "bbb"),
        ("bbb", "a"),
    ]  # p2 is a tie
    assert set(rows[0]) == {
        "prompt", "chosen", "rejected", "soft_label", "weight", "judge_margin", "label_id", "label_ids", "row_id"
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


async def test_labels_from_before_the_judges_death_are_kept_and_the_next_start_does_the_rest(tmp_path: Path):
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


async def test_a_spent_budget_ends_the_start_and_the_next_start_continues(tmp_path: Path):
    first = await make_run(tmp_path, LengthJudge(delay_s=0.01), budget=Budget(labels=20)).run(make_rows(400))
    assert first["status"] == "budget"
    assert first["labels"]["total"] == 20
    assert first["rows"]["left"] == 400 - first["rows"]["done"] == 390
    second = await make_run(tmp_path, LengthJudge()).run(make_rows(400))
    assert second["status"] == "completed"
    assert second["labels"]["total"] == 800


async def test_money_is_counted_and_limited(tmp_path: Path):
    summary = await make_run(tmp_path, LengthJudge(usd=0.5, delay_s=0.01), budget=Budget(usd=10)).run(make_rows(400))
    assert summary["status"] == "budget"
    assert summary["cost"]["usd"] == pytest.approx(10) == pytest.approx(0.5 * summary["labels"]["total"])
    assert "raise --max-usd" in summary["budget"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_no_more_labels_are_made_than_the_limit_says_however_many_a_row_needs(tmp_path: Path, limit: int):
    judge = LengthJudge(delay_s=0.001)
    summary = await make_run(tmp_path, judge, budget=Budget(labels=limit)).run(make_rows(50))
    assert summary["labels"]["total"] == len(judge.asked) == limit - limit % 2
    assert f"the limit of {limit} labels is reached" in summary["budget"]
    assert "the next row needs 2" in summary["budget"]
    assert ("failure" in summary) == (limit == 1)


async def test_a_free_judge_is_not_slowed_by_a_limit_of_money(tmp_path: Path):
    limited, free = LengthJudge(delay_s=0.02), LengthJudge(delay_s=0.02)
    summary = await make_run(tmp_path / "limited", limited, budget=Budget(usd=0.01)).run(make_rows(300))
    await make_run(tmp_path / "free", free).run(make_rows(300))
    assert summary["status"] == "completed"
    assert limited.most_at_once == free.most_at_once > 8


async def test_money_is_limited_while_labels_grow_dearer(tmp_path: Path):
    class Dearer(LengthJudge):
        def _verdict(self, item: Item) -> Verdict:
            self.usd = 0.01 * min(len(self.asked), 20)
            return super()._verdict(item)

    summary = await make_run(tmp_path, Dearer(delay_s=0.005), budget=Budget(usd=3)).run(make_rows(400))
    assert summary["status"] == "budget"
    assert summary["this_start"]["usd"] <= 3


async def test_a_start_that_labels_nothing_reports_cause_and_remedy(tmp_path: Path):
    judge = LengthJudge(fails=lambda _: Status.LOW_MASS)
    summary = await make_run(tmp_path, judge).run(make_rows(20))
    assert summary["status"] == "failed"
    assert "40 of 40 labels are low_mass" in summary["failure"]
    assert "feedback.template" in summary["failure"]
    assert "another --out" in summary["failure"]
    assert json.loads((tmp_path / "summary.json").read_text())["failure"] == summary["failure"]


async def test_a_judge_that_never_has_a_verdict_is_not_asked_about_a_whole_data_set(tmp_path: Path):
    judge = LengthJudge(fails=lambda _: Status.LOW_MASS, delay_s=0.001)
    summary = await make_run(tmp_path, judge).run(make_rows(2000))
    assert summary["status"] == "failed"
    assert 256 <= len(judge.asked) <= 256 + 2 * 96


async def test_every_status_of_a_label_has_a_remedy():
    assert {str(status) for status in Status if not status.valid} == set(REMEDIES)


MIXED = [
    {"prompt": "a text", "answers": ["aaaa", "bbb"]},
    {"prompt": [{"role": "user", "content": "one turn"}], "answers": ["aaaa", "bbb"]},
    {
        "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "two turns"}],
        "chosen": [{"role": "assistant", "content": "aaaa"}],
        "rejected": [{"role": "assistant", "content": "bbb"}],
    },
    {
        "prompt": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "ho"},
            {"role": "user", "content": "three turns"},
        ],
        "answers": ["aaaa", "bbb"],
    },
]


async def test_preferences_have_one_form_for_any_form_of_input(tmp_path: Path):
    from datasets import load_dataset

    rows = [parse_row(n, raw) for n, raw in enumerate(MIXED, start=1)]
    await make_run(tmp_path, LengthJudge()).run(rows)
    found = written(tmp_path)
    assert [row["prompt"] for row in found] == [
        [{"role": m.role, "content": m.content} for m in row.prompt.messages] for row in rows
    ]
    for row in found:
        assert row["chosen"] == [{"role": "assistant", "content": "aaaa"}]
        assert row["rejected"] == [{"role": "assistant", "content": "bbb"}]
        assert "margin" not in row  # RewardTrainer would take it for a gap that it must reach
    path = str(tmp_path / "preferences.jsonl")
    dataset = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset[0]["prompt"] == [{"role": "user", "content": "a text"}]


FACTS = Constitution.model_validate(
    {
        "schema": "solon.constitution/v1",
        "id": "f",
        "version": "1",
        "principles": [
            {
                "id": name,
                "pairwise_question": f"which is more {name}?",
                "pointwise_question": f"is it {name}?",
                "predicates": [{"id": f"p{n}", "question": f"{name} {n}?"} for n in range(2)],
            }
            for name in ("kind", "true")
        ],
    }
)


@settings(max_examples=25, deadline=None)
@given(
    task=st.sampled_from(["pairwise", "pointwise", "predicate"]),
    answers=st.lists(
        st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), min_size=2, max_size=5), min_size=1, max_size=4
    ),
    comparisons=st.integers(1, 3),
    silent=st.sets(st.integers(0, 9)),
)
def test_every_label_has_its_own_id_and_every_id_of_a_preference_resolves(
    task: Any, answers: list[list[str]], comparisons: int, silent: set[int]
):
    rows = [parse_row(n, {"prompt": "p", "id": n, "answers": texts}) for n, texts in enumerate(answers, start=1)]
    judge = LengthJudge()
    judge.fails = lambda _: Status.TIMEOUT if len(judge.asked) in silent else None
    with tempfile.TemporaryDirectory() as folder:
        run = LabelRun(
            RunDirectory.reopen(Path(folder)),
            judge,
            config=FeedbackConfig(task=task, comparisons=comparisons),
            constitution=FACTS,
            provenance={"run_id": "run"},
        )
        asyncio.run(run.run(rows))
        labels = {
            one: label
            for done in read_labels(Path(folder))
            for one, label in zip(done.label_ids, done.labels, strict=True)
        }
        assert len(labels) == len(judge.asked)
        for row in written(Path(folder)):
            assert row["label_id"] in row["label_ids"]
            pair = {said(row, "chosen"), said(row, "rejected")}
            texts = next(one.answers for one in rows if one.row_id == row["row_id"])
            for one in row["label_ids"]:
                assert {texts[index] for index in labels[one].rollouts} <= pair
            assert len(row["label_ids"]) == len(set(row["label_ids"])) >= (2 if task == "pairwise" else 4)


async def test_a_label_skipped_for_lack_of_money_remains_to_be_made(tmp_path: Path):
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
    assert (said(first, "chosen"), said(first, "rejected")) == ("bbb", "aa")


async def test_stopping_finishes_the_rows_in_flight(tmp_path: Path):
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
    assert "no principle of the constitution applies to any row" in summary["failure"]
    assert len(finished_rows(tmp_path)) == 2


def test_progress_shows_the_remaining_rows():
    progress = Progress(rows_total=10, rows_before=2, started_s=time.monotonic() - 1000)
    assert progress.left_s is None
    progress.rows = 4
    assert progress.left_s == pytest.approx(1000, rel=0.1)


@dataclass
class PlaceJudge(LengthJudge):
    """Asked in both orders; favours the first position under the principles of `by_place`."""

    by_place: tuple[str, ...] = ("long", "early")

    def _verdict(self, item: Item) -> Verdict:
        verdict = super()._verdict(item)
        agree = item.principle_id not in self.by_place
        return dataclasses.replace(verdict, raw_margin=verdict.margin, position_offset=9.0, consistent=agree)


async def test_pairs_whose_two_orders_disagree_under_every_principle_are_left_out_and_counted(tmp_path: Path):
    summary = await make_run(tmp_path / "a", PlaceJudge()).run(make_rows(10))
    assert (summary["preferences"], summary["contradicted"]) == (0, 8)
    assert written(tmp_path / "a") == []
    half = await make_run(tmp_path / "b", PlaceJudge(by_place=("early",))).run(make_rows(10))
    assert (half["preferences"], half["contradicted"]) == (8, 0)


async def test_contradicted_pairs_are_preferences_where_that_is_set(tmp_path: Path):
    run = make_run(tmp_path, PlaceJudge())
    run._config = FeedbackConfig(task="pairwise", swap=SwapConfig(contradicted="keep"))
    summary = await run.run(make_rows(10))
    assert (summary["preferences"], summary["contradicted"]) == (8, 0)


async def test_a_judge_that_decides_by_position_is_warned_of_in_the_summary(tmp_path: Path):
    summary = await make_run(tmp_path / "a", PlaceJudge()).run(make_rows(10))
    (warning,) = summary["warnings"]
    assert "decides by position" in warning
    assert summary["quality"]["by_position_share"] == 1
    assert "warnings" not in await make_run(tmp_path / "b", LengthJudge()).run(make_rows(10))


def test_a_template_already_in_use_is_not_recommended():
    def advice(template: str) -> str:
        return why_nothing(Counter(low_mass=9), refusal="", detail="", template=template)

    assert "template=assistant" not in advice("assistant")
    assert "template=compact" in advice("assistant")
    assert "template=assistant" in advice("compact")
    assert "template=compact" not in advice("compact")
