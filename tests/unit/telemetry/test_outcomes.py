"""Rewards, advantages and steps in the rows of rollouts: at once where known, filled in where they come later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from solon.errors import PayloadLostError
from solon.ledger.ledger import Lease
from solon.protocols import GenerationReport, LabelReport
from solon.records import Feedback, Group, Label, StepReport, TrainedGroup
from solon.runs.directory import RunDirectory
from solon.telemetry.recorder import Recorder
from solon.telemetry.totals import RunTotals
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_group

Told = dict[tuple[int, int], tuple[float | None, float | None, int | None]]


class Run:
    """A recorder that receives groups by their numbers."""

    def __init__(self, path: Path, *, open_payload: Any = lambda payload_ref: payload_ref) -> None:
        self.path = path
        self.recorder = Recorder(
            RunDirectory.reopen(path),
            RunTotals(staleness_bound=4, total_steps=3),
            open_payload=open_payload,
            provenance={"run_id": "run"},
            on_failure=lambda _: None,
        )

    def generate(self, *ordinals: int, attempt: int = 0, payload_ref: Any = None) -> None:
        for ordinal in ordinals:
            group = make_group(ordinal, attempt=attempt)
            report = GenerationReport(ordinal=ordinal, attempt=attempt, head=0, num_tokens=6, nbytes=1)
            self.recorder.generated(report, payload_ref or group)

    def label(self, *ordinals: int, attempt: int = 0) -> None:
        for ordinal in ordinals:
            feedback = Feedback(
                ordinal=ordinal,
                attempt=attempt,
                rewards_G=(float(ordinal), None),
                labels=(
                    Label(
                        task="pointwise", principle_id="p", rollouts=(0,), verdict=Verdict(status=Status.OK, margin=1.0)
                    ),
                ),
            )
            self.recorder.labelled(label_report(feedback), feedback)

    def step(self, step: int, *ordinals: int, attempt: int = 0) -> None:
        lease = Lease(step=step, token=1, ordinals=ordinals, staleness=(0,) * len(ordinals) or (0,), payloads=())
        groups = tuple(
            TrainedGroup(
                ordinal=ordinal, attempt=attempt, rewards_G=(float(ordinal), None), advantages_G=(0.5 + ordinal, None)
            )
            for ordinal in ordinals
        )
        self.recorder.stepped(lease, StepReport(step=step, metrics={}, groups=groups))

    def rows(self) -> list[dict[str, Any]]:
        parts = sorted((self.path / "rollouts").glob("part-*.parquet"))
        return [row for part in parts for row in pq.read_table(part).to_pylist()]

    def told(self) -> Told:
        """The row of the first rollout of every group, by ordinal and attempt; the last row counts."""
        return {
            (row["ordinal"], row["attempt"]): (row["reward"], row["advantage"], row["step"])
            for row in self.rows()
            if row["index"] == 0
        }


def label_report(feedback: Feedback) -> LabelReport:
    return LabelReport(
        ordinal=feedback.ordinal,
        attempt=feedback.attempt,
        num_rollouts=2,
        num_valid=1,
        reward_mean=1.0,
        labels=1,
        invalid=0,
        questions=1,
        cache_hits=0,
        prompt_tokens=1,
        cached_tokens=0,
        nbytes=1,
    )


def test_every_row_has_the_outcome_of_its_rollout(tmp_path: Path):
    run = Run(tmp_path / "run")
    run.generate(0, 1, 2, 3)
    run.label(0, 1, 2)
    run.step(0, 0)
    run.generate(4)
    run.label(4)
    run.step(1, 1, 4)
    run.recorder.event("group_dropped", ordinal=2, reason="stale")
    run.recorder.close()
    assert run.told() == {
        (0, 0): (0.0, 0.5, 0),
        (1, 0): (1.0, 1.5, 1),
        (2, 0): (2.0, None, None),  # labelled, dropped
        (3, 0): (None, None, None),  # never labelled
        (4, 0): (4.0, 4.5, 1),
    }
    # A rollout without a valid label has neither.
    assert [(row["reward"], row["advantage"], row["step"]) for row in run.rows() if row["index"]] == [
        (None, None, 0),
        (None, None, 1),
        (None, None, None),
        (None, None, None),
        (None, None, 1),
    ]


def test_rows_are_on_disk_before_their_outcome_is_known_and_stay_where_they_are(tmp_path: Path):
    run = Run(tmp_path / "run")
    run.generate(0, 1)
    run.step(0)
    run.recorder.sync()
    before = run.rows()
    assert [row["ordinal"] for row in before] == [0, 0, 1, 1]
    run.label(0, 1)
    run.step(1, 0, 1)
    run.recorder.sync()
    after = run.rows()
    assert [row | {"reward": None, "advantage": None, "step": None} for row in after] == before
    assert run.told() == {(0, 0): (0.0, 0.5, 1), (1, 0): (1.0, 1.5, 1)}
    run.recorder.close()


def test_a_checkpoint_has_all_outcomes_known_at_that_time(tmp_path: Path):
    run = Run(tmp_path / "run")
    run.generate(0, 1, 2)
    run.label(0, 1)
    run.step(0, 0)
    run.recorder.sync()  # then the process dies
    assert run.told() == {(0, 0): (0.0, 0.5, 0), (1, 0): (1.0, None, None), (2, 0): (None, None, None)}


def test_a_resumed_run_fills_in_rows_of_the_previous_process(tmp_path: Path):
    first = Run(tmp_path / "run")
    first.generate(0, 1)
    first.label(0)
    first.step(0)
    first.recorder.close()
    first.recorder._directory.close()
    second = Run(tmp_path / "run")
    second.generate(2)
    second.label(1, 2)
    second.step(1, 0, 1)
    second.recorder.close()
    assert second.told() == {(0, 0): (0.0, 0.5, 1), (1, 0): (1.0, 1.5, 1), (2, 0): (2.0, None, None)}


def test_a_group_generated_again_gets_its_outcome_in_the_trained_row(tmp_path: Path):
    run = Run(tmp_path / "run")
    run.generate(0)
    run.step(0)
    run.recorder.event("group_lost", ordinal=0, attempt=0, reason="engine gone")
    run.generate(0, attempt=1)
    run.label(0, attempt=1)
    run.step(1, 0, attempt=1)
    run.recorder.close()
    assert run.told() == {(0, 0): (None, None, None), (0, 1): (0.0, 0.5, 1)}


def test_labels_that_come_after_the_drop_are_filled_in_too(tmp_path: Path):
    run = Run(tmp_path / "run")
    run.generate(0)
    run.recorder.event("group_dropped", ordinal=0, reason="too few valid labels")
    run.step(0)
    run.label(0)
    run.recorder.close()
    assert run.told() == {(0, 0): (0.0, None, None)}


def test_a_group_whose_rows_were_lost_and_a_part_that_is_gone_do_no_harm(tmp_path: Path):
    def open_payload(payload_ref: Any) -> Any:
        if payload_ref == "lost":
            raise PayloadLostError("its node is gone")
        return payload_ref

    run = Run(tmp_path / "run", open_payload=open_payload)
    run.generate(0, payload_ref="lost")
    run.generate(1)
    run.label(0, 1)
    run.step(0, 0)
    run.recorder.sync()
    (part,) = (run.path / "rollouts").glob("*.parquet")
    part.unlink()
    run.step(1, 1)
    run.recorder.close()
    assert "part-000000.parquet cannot be read" in (run.path / "events.jsonl").read_text()


def test_a_synchronous_run_writes_every_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    again: list[Path] = []
    monkeypatch.setattr(RunDirectory, "replace_rows", lambda self, path, table: again.append(path))
    run = Run(tmp_path / "run")
    for step in range(4):
        run.generate(2 * step, 2 * step + 1)
        run.label(2 * step, 2 * step + 1)
        run.step(step, 2 * step, 2 * step + 1)
    run.recorder.close()
    assert again == []
    assert run.told() == {(n, 0): (float(n), n + 0.5, n // 2) for n in range(8)}


def test_nothing_is_remembered_of_groups_that_are_settled(tmp_path: Path):
    run = Run(tmp_path / "run")
    for step in range(5):
        run.generate(step + 1)
        run.label(step + 1)
        run.step(step, *([step] if step else []))
    run.recorder.sync()
    outcomes = run.recorder._outcomes
    assert (outcomes._news, outcomes._settled) == ({}, set())
    assert set(outcomes._part) == {(5, 0)}
    assert [*outcomes._open.values()] == [{5}]
    run.recorder.close()


def test_a_group_of_many_rollouts_is_filled_in_by_index(tmp_path: Path):
    run = Run(tmp_path / "run")
    group = make_group(0, texts=("a", "b", "c"))
    assert isinstance(group, Group)
    run.recorder.generated(GenerationReport(ordinal=0, attempt=0, head=0, num_tokens=9, nbytes=1), group)
    run.step(0)
    trained = TrainedGroup(ordinal=0, attempt=0, rewards_G=(1.0, None, 3.0), advantages_G=(-1.0, None, None))
    lease = Lease(step=1, token=1, ordinals=(0,), staleness=(0,), payloads=())
    run.recorder.stepped(lease, StepReport(step=1, metrics={}, groups=(trained,)))
    run.recorder.close()
    assert [(r["reward"], r["advantage"], r["step"]) for r in run.rows()] == [
        (1.0, -1.0, 1),
        (None, None, 1),
        (3.0, None, 1),
    ]
