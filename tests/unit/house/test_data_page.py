"""docs/data.md describes exactly the output of the code."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cluster.evaluate import Evaluation, Judged
from solon.doctor.status import RunStatus
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.labelling.dataset import parse_row
from solon.feedback.labelling.preferences import Preference, preference_row, rating_rows
from solon.feedback.selection.policy import Selection
from solon.records import Feedback, Label
from solon.runs.columns import COLUMNS, HELD, LABELS, ROLLOUTS
from solon.runs.directory import RunDirectory
from solon.runs.objects import HELDOUT, LABELLED, PREFERENCES, RATINGS, RUN, SUMMARY
from solon.runs.outcomes import COLUMNS as OUTCOME
from solon.runs.tables import TYPES, label_rows, rollout_rows
from solon.telemetry.totals import RunTotals
from solon.verdicts import Status, Verdict
from tests.documented import metric_keys, undocumented
from tests.unit.fakes import make_group, make_prompt
from tests.unit.telemetry.test_outcomes import Run

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_matches_the_code(script: Callable[[str], ModuleType]):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert page == script("data_page").page(), "run `python scripts/data_page.py`"


def test_every_column_is_described_and_every_description_has_its_column():
    identity = {field.name for field in dataclasses.fields(JudgeIdentity)}
    written = {*rollout_rows(make_group())[0], *OUTCOME}
    assert written | TYPES["rollouts"].keys() == ROLLOUTS.keys()
    assert TYPES["held"].keys() <= ROLLOUTS.keys() | HELD.keys() == COLUMNS["held"].keys()
    assert TYPES["labels"].keys() | identity | {"run_id", "row_id"} == LABELS.keys()


def test_keys_of_objects_are_those_of_the_classes_that_write_them():
    row = parse_row(1, {"prompt": "p", "answers": ["a", "b"]})
    preference = Preference(row_id="1", chosen=0, rejected=1, margin=1.0, label_ids=("x",))
    assert preference_row(row, preference).keys() == PREFERENCES.keys()
    group = Feedback(ordinal=1, attempt=0, rewards_G=(0.5, None), labels=())
    (rated,) = rating_rows(row, group, weight=1.0)
    assert rated.keys() == RATINGS.keys()
    found = Evaluation(prompts=(make_prompt(),), answers=("a",), judged=(Judged(obeys={}),))
    (held_out,) = found.rows()
    assert {key.removesuffix(".*") for key in HELDOUT} == held_out.keys()
    for name, written in (("live.json", RunStatus.model_fields), ("selection.jsonl", Selection.__dataclass_fields__)):
        keys = (RUN | LABELLED)[name][1]
        assert keys is not None
        assert {key.removesuffix(".*") for key in keys} == set(written)


def test_the_summary_of_a_run_is_described(tmp_path: Path):
    counts = {"admitted": 0, "committed": 0, "dropped": 0, "held": 0}
    summary = RunTotals(staleness_bound=4, total_steps=3).summary(status="completed", counts=counts, attested=0)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert undocumented(tmp_path, RUN) == []
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"surprise": 1, "labels": {"odd": 2}}))
    (tmp_path / "surprise.json").write_text("{}")
    assert undocumented(tmp_path, RUN) == [
        "summary.json: labels.odd",
        "summary.json: surprise",
        "surprise.json: not described",
    ]
    assert "labels.total" in SUMMARY


def test_keys_of_metrics_are_read_from_the_tables_of_the_algorithm_page():
    known = metric_keys()
    assert {
        "step",
        "batch/staleness/mean",
        "overlap/busy/label",
        "learn/clip_fraction_low/mean",
        "learn/clip_fraction_high/mean",
    } <= known


def test_the_recipe_of_the_page_finds_the_best_answers_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("pandas")
    run = Run(tmp_path / "runs" / "demo")
    run.generate(*range(8))
    run.label(*range(8))
    run.step(0, *range(8))
    run.recorder.close()
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "data.md", "exec"), names)
    assert names["best"]["reward"].tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert names["best"]["advantage"].tolist() == [3.5, 4.5, 5.5, 6.5, 7.5]
    assert "principle_id" in capsys.readouterr().out
    assert undocumented(run.path, RUN) == []


def test_labels_of_every_kind_have_described_columns(tmp_path: Path):
    label = Label(task="score", principle_id="p", rollouts=(0,), verdict=Verdict(status=Status.OK, margin=1.0))
    rows = label_rows(Feedback(ordinal=0, attempt=0, rewards_G=(1.0,), labels=(label,)), {"run_id": "x", "row_id": "y"})
    RunDirectory.reopen(tmp_path).write_rows("labels", rows)
    assert undocumented(tmp_path / "labels", {"part-*.parquet": ("", None)}) == []
