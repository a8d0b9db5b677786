from __future__ import annotations

import errno
import json
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import solon.telemetry.recorder as module
from solon.clock import Clock
from solon.errors import PayloadLostError
from solon.ledger.ledger import Grant, Lease
from solon.protocols import GenerationReport, LabelReport
from solon.records import Feedback, Group, Label, Span, StepReport
from solon.runs import directory as run_directory
from solon.runs.directory import DiskFullError, RunDirectory
from solon.runs.integrity import examine
from solon.runs.tables import label_rows
from solon.telemetry.exports import RunExports
from solon.telemetry.recorder import Recorder
from solon.telemetry.totals import RunTotals
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_group


def make_lease(step: int = 0, *, staleness: tuple[int, ...] = (0, 1)) -> Lease:
    return Lease(step=step, token=1, ordinals=(2 * step, 2 * step + 1), staleness=staleness, payloads=())


def make_report(step: int = 0, **metrics: float) -> StepReport:
    named = {key.replace("_", "/"): value for key, value in (metrics or {"learn_reward_mean": 0.5}).items()}
    return StepReport(step=step, metrics=named, spans=(Span(lane="learn", worker="l", name="s", start_s=0, end_s=1),))


def make_generation(group: Group) -> GenerationReport:
    return GenerationReport(ordinal=group.ordinal, attempt=0, head=0, num_tokens=group.num_tokens, nbytes=1)


def make_labelling(feedback: Feedback) -> LabelReport:
    return LabelReport(
        ordinal=feedback.ordinal,
        attempt=0,
        num_rollouts=2,
        num_valid=2,
        reward_mean=1.0,
        labels=2,
        invalid=1,
        questions=2,
        cache_hits=1,
        prompt_tokens=10,
        cached_tokens=5,
        nbytes=1,
        invalid_by_status=(("abstain", 1),),
    )


def make_feedback(ordinal: int = 0) -> Feedback:
    labels = tuple(
        Label(task="pointwise", principle_id="kind", rollouts=(i,), verdict=Verdict(status=Status.OK, margin=float(i)))
        for i in (0, 1)
    )
    return Feedback(ordinal=ordinal, attempt=0, rewards_G=(0.0, 1.0), labels=labels)


class Told:
    """Keeps the reports of a recorder."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.threads: list[str] = []
        self.changes: list[str] = []

    def on_failure(self, error: Exception) -> None:
        self.failures.append(error)
        self.threads.append(threading.current_thread().name)


def make_recorder(
    tmp_path: Path,
    *,
    open_payload: Callable[[Any], Any] = lambda payload_ref: payload_ref,
    told: Told | None = None,
    **changes: Any,
) -> tuple[Recorder, Path]:
    told = told or Told()
    directory = RunDirectory.create(tmp_path, "run", default="run")
    given: dict[str, Any] = {"on_failure": told.on_failure, "on_change": told.changes.append} | changes
    totals = RunTotals(staleness_bound=4, total_steps=3)
    return Recorder(directory, totals, open_payload=open_payload, provenance={"run_id": "run"}, **given), directory.path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_everything_reported_is_written(tmp_path: Path):
    told = Told()
    recorder, path = make_recorder(tmp_path, told=told)
    recorder.event("started", config_hash="abc")
    for ordinal in range(4):
        group, feedback = make_group(ordinal), make_feedback(ordinal)
        recorder.generated(make_generation(group), group)
        recorder.labelled(make_labelling(feedback), feedback)
    for step in range(2):
        recorder.stepped(make_lease(step), make_report(step))
    recorder.published(1, [], 1e-4, Span(lane="publish", worker="p", name="publish", start_s=0, end_s=1))
    recorder.close()
    assert [line["step"] for line in lines(path / "metrics.jsonl")] == [0, 1]
    assert lines(path / "metrics.jsonl")[1]["batch/ordinals"] == [2, 3]
    assert [line["event"] for line in lines(path / "events.jsonl")] == ["started", "published"]
    assert pq.read_table(path / "rollouts").num_rows == 8
    labels = pq.read_table(path / "labels").to_pylist()
    assert [(row["ordinal"], row["reward"]) for row in labels] == [(n, r) for n in range(4) for r in (0.0, 1.0)]
    assert told.changes == ["started", "step", "step", "published"]
    assert told.failures == []


def test_rows_without_a_step_are_written_at_the_end_and_many_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ROWS_PER_PART", 4)
    recorder, path = make_recorder(tmp_path)
    for ordinal in range(5):
        recorder.generated(make_generation(make_group(ordinal)), make_group(ordinal))
    recorder.close()
    assert [pq.read_table(p).num_rows for p in sorted((path / "rollouts").iterdir())] == [4, 4, 2]


def test_a_payload_that_cannot_be_opened_loses_only_itself_and_is_reported_once(tmp_path: Path):
    told = Told()

    def open_payload(payload_ref: Any) -> Any:
        if isinstance(payload_ref, str):
            raise ConnectionError(f"{payload_ref} is gone")
        return payload_ref

    recorder, path = make_recorder(tmp_path, open_payload=open_payload, told=told)
    for ordinal in range(4):
        group = make_group(ordinal)
        recorder.generated(make_generation(group), group if ordinal % 2 else f"box {ordinal}")
    recorder.stepped(make_lease(), make_report())
    with pytest.raises(ConnectionError, match="box 0 is gone"):
        recorder.close()
    assert [str(error) for error in told.failures] == ["box 0 is gone"]
    assert told.threads == ["solon-recorder"]
    assert len(lines(path / "metrics.jsonl")) == 1
    assert set(pq.read_table(path / "rollouts")["ordinal"].to_pylist()) == {1, 3}
    assert recorder.totals.groups_generated == 4


def test_writing_continues_when_the_failure_callback_is_gone(tmp_path: Path):
    def gone(_: Exception) -> None:
        raise RuntimeError("Event loop is closed")

    recorder, path = make_recorder(tmp_path, open_payload=lambda payload_ref: 1 / 0, on_failure=gone)
    recorder.generated(make_generation(make_group()), make_group())
    recorder.event("ended")
    with pytest.raises(ZeroDivisionError):
        recorder.close()
    assert [line["event"] for line in lines(path / "events.jsonl")] == ["ended"]


def test_a_failure_while_the_last_rows_are_written_is_reported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_disk(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    told = Told()
    recorder, _ = make_recorder(tmp_path, told=told)
    monkeypatch.setattr(RunDirectory, "write_rows", no_disk)
    recorder.generated(make_generation(make_group()), make_group())
    with pytest.raises(OSError, match="Input/output"):
        recorder.close()
    assert len(told.failures) == 1


def test_no_stage_waits_for_the_disk(tmp_path: Path):
    opened = threading.Event()

    def slow(payload_ref: Any) -> Any:
        opened.wait(5)
        return payload_ref

    recorder, path = make_recorder(tmp_path, open_payload=slow)
    recorder.generated(make_generation(make_group()), make_group())  # returns although nothing can be written
    recorder.stepped(make_lease(), make_report())
    assert not (path / "metrics.jsonl").exists()
    opened.set()
    recorder.close()
    assert len(lines(path / "metrics.jsonl")) == 1


class Boxed:
    """A payload that can be seen to go."""


def test_payloads_waiting_to_be_written_are_counted_in_bytes_and_released_when_written(tmp_path: Path):
    opened, backlog = threading.Event(), list[int]()

    def slow(payload_ref: Any) -> Any:
        opened.wait(5)
        return make_group(0)

    recorder, _ = make_recorder(tmp_path, open_payload=slow, on_backlog=backlog.append)
    payload_refs = [Boxed(), Boxed()]
    kept = [weakref.ref(payload_ref) for payload_ref in payload_refs]
    for ordinal in (0, 1):
        report = GenerationReport(ordinal=ordinal, attempt=0, head=0, num_tokens=6, nbytes=100)
        recorder.generated(report, payload_refs.pop())
    assert backlog == [100, 200]
    assert all(payload_ref() is not None for payload_ref in kept)
    opened.set()
    recorder.sync()
    assert backlog == [100, 200, 100, 0]
    assert [payload_ref() for payload_ref in kept] == [
        None,
        None,
    ]  # although the recorder lives on, and has nothing to do
    recorder.close()


def test_a_payload_that_cannot_be_written_is_released_too(tmp_path: Path):
    backlog: list[int] = []
    recorder, _ = make_recorder(tmp_path, open_payload=lambda payload_ref: 1 / 0, on_backlog=backlog.append)
    recorder.generated(make_generation(make_group()), make_group())
    with pytest.raises(ZeroDivisionError):
        recorder.close()
    assert backlog == [1, 0]


def test_rows_written_into_the_ballast_after_a_full_disk_count_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recorder, path = make_recorder(tmp_path)
    append, tries = run_directory._append, list[str]()

    def full_once(place: Path, lines: bytes) -> None:
        tries.append(place.name)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(place, lines)

    monkeypatch.setattr(run_directory, "_append", full_once)
    recorder.event("started")
    records = recorder.sync()
    assert records.files["events.jsonl"].lines == 1
    assert not examine(path, records).damages
    with pytest.raises(DiskFullError, match="everything generated so far was written"):
        recorder.close()


def test_rows_lost_to_a_full_disk_prevent_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recorder, _ = make_recorder(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_directory, "_append", full)
    recorder.event("started")
    with pytest.raises(DiskFullError, match="could not be written"):
        recorder.sync()


def test_a_metric_that_is_no_number_is_null(tmp_path: Path):
    recorder, path = make_recorder(tmp_path)
    recorder.stepped(make_lease(), make_report(learn_reward_mean=math.nan, learn_kl_max=math.inf, learn_kl_mean=0.5))
    recorder.event("alarm", value=math.nan)
    recorder.close()
    (line,) = lines(path / "metrics.jsonl")
    assert (line["learn/reward/mean"], line["learn/kl/max"], line["learn/kl/mean"]) == (None, None, 0.5)
    assert "NaN" not in (path / "metrics.jsonl").read_text() + (path / "events.jsonl").read_text()


# -- the tally -------------------------------------------------------------------------------------------------


COUNTS = {"admitted": 4, "committed": 2, "dropped": 0, "held": 2}


def make_summary(totals: RunTotals) -> dict[str, Any]:
    return totals.summary(
        status="completed", counts={"admitted": 4, "committed": 2, "dropped": 0, "held": 2}, attested=0
    )


def test_a_run_without_a_step_has_a_valid_summary():
    summary = make_summary(RunTotals(staleness_bound=4, total_steps=3))
    json.dumps(summary, allow_nan=False)
    nothing = {"first": None, "last": None}
    assert summary["reward"] == {**nothing, "relative": False, "spread": nothing}
    assert summary["overlap"]["binding_stage"] == "none"


def test_the_summary_is_valid_json_though_a_reward_was_missing():
    totals = RunTotals(staleness_bound=4, total_steps=3)
    for step, reward in enumerate([math.nan, *[0.25] * 10, *[0.75] * 9, math.inf]):
        totals.stepped(make_lease(step), make_report(step, learn_reward_mean=reward))
    totals.stepped(make_lease(20), StepReport(step=20, metrics={}))
    summary = make_summary(totals)
    json.dumps(summary, allow_nan=False)
    assert (summary["reward"]["first"], summary["reward"]["last"]) == (0.25, None)
    assert summary["staleness"] == {"max": 1, "p50": 0, "bound": 4}


def test_the_training_clock_stops_once_and_later_work_does_not_count():
    now = [100.0]
    totals = RunTotals(staleness_bound=4, total_steps=3, clock=Clock(wall=lambda: now[0]))
    totals.labelled(make_labelling(make_feedback()))
    now[0] = 110.0
    totals.begin()
    now[0] = 130.0
    totals.end()
    before = make_summary(totals)
    now[0] = 230.0  # the last checkpoint, the last evaluation
    totals.end()
    assert make_summary(totals) == before
    assert before["wall_s"] == 20.0
    totals.begin()
    now[0] = 231.0
    assert totals.wall_s == 1.0


def test_a_learner_that_reached_other_weights_causes_a_warning_also_after_a_resume():
    totals = RunTotals(staleness_bound=4, total_steps=3)
    totals.fault("learner_trained_again", {"steps": 2, "same_weights": True})
    assert make_summary(totals)["warnings"] == []
    totals.fault("learner_trained_again", {"steps": 2, "same_weights": False})
    resumed = RunTotals(staleness_bound=4, total_steps=3)
    resumed.restore(totals.state())
    (warning,) = make_summary(resumed)["warnings"]
    assert warning.startswith("a lost learner was trained again to other weights than it had (once)")


def test_the_summary_counts_what_was_reported():
    totals = RunTotals(staleness_bound=4, total_steps=3)
    totals.generated(make_generation(make_group()))
    totals.labelled(make_labelling(make_feedback()))
    labels = make_summary(totals)["labels"]
    assert (labels["total"], labels["valid"], labels["invalid"], labels["cache_hits"]) == (2, 1, 1, 1)
    assert labels["invalid_by_status"] == {"abstain": 1}
    assert labels["prefix_hit_share"] == 0.5


def test_label_ids_are_the_same_for_one_label_and_differ_between_labels_and_runs():
    def ids(run_id: str, ordinal: int) -> list[str]:
        return [row["label_id"] for row in label_rows(make_feedback(ordinal), {"run_id": run_id})]

    assert ids("a", 0) == ids("a", 0)
    assert len({*ids("a", 0), *ids("a", 1), *ids("b", 0)}) == 6


def test_two_questions_of_one_principle_have_two_label_ids():
    labels = tuple(
        Label(
            task="predicate",
            principle_id="kind",
            rollouts=(0,),
            question_id=question,
            verdict=Verdict(status=Status.TIE, margin=0.0),
        )
        for question in ("greets", "thanks")
    )
    rows = label_rows(Feedback(ordinal=0, attempt=0, rewards_G=(0.0,), labels=labels), {"run_id": "a"})
    assert rows[0]["label_id"] != rows[1]["label_id"]


def test_a_payload_lost_with_its_machine_is_reported_and_the_rest_is_written(tmp_path: Path):
    group = make_group(3)

    def open_payload(payload_ref: Any) -> Any:
        if payload_ref is None:
            raise PayloadLostError("its node is gone")
        return payload_ref

    directory = RunDirectory.create(tmp_path, "run", default="run")
    totals = RunTotals(staleness_bound=4, total_steps=2)
    recorder = Recorder(directory, totals, open_payload=open_payload, provenance={}, on_failure=lambda _: None)
    for ordinal, payload_ref in ((2, None), (3, group)):
        report = GenerationReport(ordinal=ordinal, attempt=0, head=0, num_tokens=6, nbytes=10)
        recorder.generated(report, payload_ref)
    recorder.close()
    (event,) = [json.loads(line) for line in (directory.path / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["table"], event["ordinal"]) == ("rows_lost", "rollouts", 2)
    assert len(list((directory.path / "rollouts").iterdir())) == 1


def test_every_event_of_a_burst_is_written_once_and_in_order(tmp_path: Path):
    recorder, path = make_recorder(tmp_path)
    for number in range(20_000):
        recorder.event("group_dropped", ordinal=number, reason="r")
    recorder.close()
    for name in ("events.jsonl", "groups.jsonl"):
        assert [line["ordinal"] for line in lines(path / name)] == list(range(20_000))


class Heard(RunExports):
    """Notes which reports it gets."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("granted", "generated", "labelled", "stepped", "published", "event"):
            self.calls.append(name)
            return lambda *_, **__: None
        return super().__getattribute__(name)


def test_what_exports_figures_gets_every_report(tmp_path: Path):
    heard, group, feedback = Heard(), make_group(), make_feedback()
    recorder, path = make_recorder(tmp_path, exports=heard)
    recorder.granted("rollout-0", [Grant(0, 0, 0)])
    recorder.generated(make_generation(group), group)
    recorder.labelled(make_labelling(feedback), feedback)
    recorder.stepped(make_lease(), make_report())
    recorder.published(1, [], 0.0, Span(lane="publish", worker="publish", name="v", start_s=0, end_s=1))
    recorder.close()
    assert heard.calls == ["granted", "generated", "labelled", "stepped", "published", "event"]
    known, unknown = lines(path / "groups.jsonl")
    assert (known["ordinal"], known["engine"], known["step"], known["staleness"]) == (0, "rollout-0", 0, 0)
    assert (unknown["ordinal"], unknown["engine"], unknown["staleness"]) == (1, None, 1)
