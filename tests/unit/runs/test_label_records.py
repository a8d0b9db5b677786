"""Labels hold their verdict; files keep the flat records that they always had."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from solon.checkpoints.held_groups import read_held, write_held
from solon.feedback.labelling.finished import read_labels
from solon.records import Feedback, Label
from solon.runs.label_records import compact, nested
from solon.runs.tables import label_rows
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_group

LABEL = Label(
    task="pairwise",
    principle_id="kind",
    rollouts=(0, 1),
    verdict=Verdict(
        status=Status.OK, margin=0.1 + 0.2, raw_margin=0.5, consistent=True, mass=0.99, judge="judge-0", questions=2,
        prompt_digests=("aa", "bb"),
    ),
)  # fmt: skip
FAILED = Label(
    task="pointwise",
    principle_id="kind",
    rollouts=(1,),
    question_id="greets",
    verdict=Verdict(status=Status.TIMEOUT, margin=None, detail="slow", questions=1),
)
OLD_LINE = (
    '{"ordinal":7,"attempt":1,"rewards_G":[0.30000000000000004,null],"labels":[{"task":"pairwise","principle_id":"kind",'
    '"rollouts":[0,1],"status":"ok","margin":0.30000000000000004,"raw_margin":0.5,"consistent":true,"mass":0.99,'
    '"questions":2,"prompt_digests":["aa","bb"],"judge":"judge-0"},{"task":"pointwise","principle_id":"kind",'
    '"rollouts":[1],"status":"timeout","margin":null,"question_id":"greets","detail":"slow"}]}'
)
"""A line of feedback.jsonl of a version in which a label had the fields of its verdict itself."""


def test_labels_of_a_checkpoint_are_written_as_before_and_old_ones_are_read(tmp_path: Path):
    feedback = Feedback(ordinal=7, attempt=1, rewards_G=(0.1 + 0.2, None), labels=(LABEL, FAILED))
    write_held(tmp_path, [(make_group(7, attempt=1), feedback)])
    file = tmp_path / "feedback.jsonl"
    assert json.loads(file.read_text()) == json.loads(OLD_LINE)
    file.write_text(OLD_LINE + "\n")
    assert read_held(tmp_path)[7][1] == feedback


def test_a_record_has_all_fields_of_a_label_and_its_verdict_side_by_side():
    names = {field.name for cls in (Label, Verdict) for field in dataclasses.fields(cls)} - {"verdict"}
    (row,) = label_rows(Feedback(ordinal=0, attempt=0, rewards_G=(1.0, 0.0), labels=(LABEL,)), {})
    assert names <= row.keys()
    assert compact(LABEL).keys() <= names
    again = nested(compact(LABEL) | {"written by a newer version": 1})
    assert Label(**again | {"verdict": Verdict(**again["verdict"])}) == LABEL


def test_rows_of_a_label_file_without_later_columns_are_read(tmp_path: Path):
    rows = label_rows(Feedback(ordinal=0, attempt=0, rewards_G=(1.0, 0.0), labels=(LABEL, FAILED)), {})
    later = ("usd", "propensity", "level", "source", "output_tokens")
    old = [{key: value for key, value in row.items() if key not in later} for row in rows]
    (tmp_path / "labels").mkdir()
    table = pa.Table.from_pylist([row | {"row_id": "a", "weight": 1.0} for row in old])
    pq.write_table(table, tmp_path / "labels" / "part-00000.parquet")
    (found,) = read_labels(tmp_path)
    assert found.labels == [LABEL, FAILED]
    assert found.label_ids == [row["label_id"] for row in rows]
