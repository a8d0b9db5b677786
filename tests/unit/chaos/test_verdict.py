"""The judge of the chaos harness is not to be fooled either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solon.records import Feedback, Label
from solon.runs.directory import RunDirectory
from solon.runs.tables import label_rows, rollout_rows
from solon.verdicts import Status, Verdict
from tests.chaos.standin_run import prompts_of
from tests.chaos.verdict import complaints, expected_digest, slope, version_complaints
from tests.unit.fakes import make_group


def run_of(root: Path, batches: list[list[int]], *, events: list[dict[str, Any]] | None = None) -> Path:
    directory = RunDirectory.create(root, "run", default="run")
    published = [{"time": 11.0 + v, "event": "published", "version": v} for v in range(1, len(batches) + 1)]
    for event in [*(events or []), *published]:
        directory.append("events.jsonl", event)
    for step, ordinals in enumerate(batches):
        directory.append("metrics.jsonl", {"step": step, "time": 10.0 + step, "batch/ordinals": ordinals})
    rows = [row for batch in batches for o in batch for row in rollout_rows(make_group(o))]
    directory.write_rows("rollouts", rows)
    label = Label(task="pointwise", principle_id="p", rollouts=(0,), verdict=Verdict(status=Status.OK, margin=1.0))
    feedbacks = [Feedback(ordinal=o, attempt=0, rewards_G=(1.0,), labels=(label,)) for batch in batches for o in batch]
    directory.write_rows("labels", [row for feedback in feedbacks for row in label_rows(feedback, {})])
    summary = {
        "status": "completed",
        "steps": len(batches),
        "groups": {"admitted": 4},
        "weights": {"attested": len(batches)},
        "staleness": {"max": 1, "bound": 4},
    }
    directory.write_json("summary.json", summary)
    directory.close()
    return directory.path


def test_a_run_that_kept_its_promises_draws_no_complaint(tmp_path: Path):
    assert complaints(run_of(tmp_path, [[0, 2], [1, 3]]), steps=2, batch=2) == []


@pytest.mark.parametrize(
    ("batches", "said"),
    [([[0, 2], [1, 2]], "counted twice: [2]"), ([[0, 2], [1, 4]], "lost: [3]"), ([[0, 1]], "lost: [2, 3]")],
)
def test_lost_and_double_counted_groups_are_found(tmp_path: Path, batches: list[list[int]], said: str):
    assert any(said in complaint for complaint in complaints(run_of(tmp_path, batches), steps=2, batch=2))


def test_a_dropped_group_is_no_loss_but_is_reported(tmp_path: Path):
    events = [{"time": 1.0, "event": "group_dropped", "ordinal": 3, "reason": "poison"}]
    found = complaints(run_of(tmp_path, [[0, 2], [1]], events=events), steps=2, batch=2)
    assert found == ["not trained: [3], dropped: {3: 'poison'}"]


def test_groups_that_no_judge_can_label_are_dropped_and_never_trained(tmp_path: Path):
    events = [{"time": 1.0, "event": "group_dropped", "ordinal": 3, "reason": "no verdict"}]
    path = run_of(tmp_path, [[0, 2], [1]], events=events)
    found = complaints(path, steps=1, batch=3, is_spoilt=lambda ordinal: ordinal == 3)
    assert not [complaint for complaint in found if "dropped" in complaint or "verdict" in complaint]
    found = complaints(path, steps=1, batch=3, is_spoilt=lambda ordinal: ordinal in (2, 3))
    assert "trained without a verdict: [2]" in found


@pytest.mark.parametrize("table", ["rollouts", "labels"])
def test_every_trained_rollout_must_be_on_disk(tmp_path: Path, table: str):
    path = run_of(tmp_path, [[0, 2], [1, 3]])
    for part in (path / table).iterdir():
        part.unlink()
    assert complaints(path, steps=2, batch=2) == [f"trained without a trace in {table}: [0, 1, 2, 3]"]


def test_rows_lost_with_their_machine_are_reported_and_no_complaint(tmp_path: Path):
    lost = [{"time": 1.0, "event": "rows_lost", "table": "labels", "ordinal": n, "attempt": 0} for n in range(4)]
    path = run_of(tmp_path, [[0, 2], [1, 3]], events=lost)
    for part in (path / "labels").iterdir():
        part.unlink()
    assert complaints(path, steps=2, batch=2) == []


def test_versions_are_attested_once_and_in_order_and_again_after_a_resume():
    published = [{"event": "published", "version": version} for version in (1, 2, 3)]
    resumed = {"event": "resumed", "step": 2}
    assert version_complaints(published, steps=3) == []
    assert version_complaints([*published, resumed, published[2]], steps=3) == []
    assert version_complaints([*published, published[2]], steps=3) == ["version 3 was published on top of 3"]
    assert version_complaints(published[::2], steps=3) == ["version 3 was published on top of 1"]
    assert version_complaints(published[:2], steps=3) == ["the last version published is 2 of 3"]


def test_the_digest_depends_on_the_batch_and_not_on_the_order_within_it():
    prompts = prompts_of(10)
    assert expected_digest({0: [0, 1], 1: [2, 3]}, prompts, seed=0) == expected_digest(
        {0: [1, 0], 1: [3, 2]}, prompts, seed=0
    )
    assert expected_digest({0: [0, 1], 1: [2, 3]}, prompts, seed=0) != expected_digest(
        {0: [0, 2], 1: [1, 3]}, prompts, seed=0
    )


def test_a_slope_is_per_hour():
    assert slope([(0, 5.0), (1800, 6.0), (3600, 7.0)]) == pytest.approx(2.0)
    assert json.loads(json.dumps(slope([(0, 1), (10, 1)]))) == pytest.approx(0.0)
