"""Every end of a run has a cause and a resume command: in the summary, in the terminal and in `solon doctor`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from solon.cli.main import main
from solon.cli.view import PlainView
from solon.doctor.ending import changes_for, ending
from solon.doctor.events import alarms
from solon.errors import InputError, RunFailedError
from solon.telemetry.totals import RunTotals
from tests.unit.cli.test_view import make_console, make_summary, make_tally, shown
from tests.unit.doctor.test_doctor import checkpoint, end, event, examine, make_run

ALARM = {
    "kind": "gold_falls",
    "step": 34,
    "value": -0.01,
    "threshold": 0.0,
    "message": "gold falls by 0.0210 nats a step over steps 14 to 34 while the reward changes by +0.0800",
    "evidence": "gold 0.90, 0.71, 0.44 and reward 2.0, 2.3, 2.9 nats in windows of about 64 answers, steps 14 to 34",
    "remedy": "resume from the best checkpoint with another setting",
    "action": "stop",
    "checkpoint": "step-000020",
}
WATCH = {
    "best": {"first_step": 18, "last_step": 21, "gold": 0.9},
    "last": {"first_step": 31, "last_step": 34, "gold": 0.44},
}
RESUME = "solon train r.toml --name n --resume"


def config(tmp_path: Path, kl: float = 0.05) -> dict[str, Any]:
    origin = {"command": ["solon", "train", "r.toml"], "folder": str(tmp_path), "is_job": False}
    return {"origin": origin, "learn": {"kl_coefficient": kl}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "n"


def test_a_run_that_an_alarm_stopped_goes_back_with_a_setting_that_does_not_stop_it_again(run: Path, tmp_path: Path):
    found = ending({"status": "stopped", "stopped_by": ALARM, "watch": WATCH}, config(tmp_path), run)
    assert found.cause.startswith("alarm gold_falls at step 34: gold falls by 0.0210 nats a step")
    assert found.evidence == ALARM["evidence"]
    assert (
        "`best` is step-000020: of the checkpoints before the fault, gold liked it best (of all windows gold was best "
        "at steps 18 to 21: 0.90; 0.44 at the end)" in found.remedy
    )
    assert found.resume == f"{RESUME} --from best --set learn.kl_coefficient=0.1"


def test_a_setting_already_in_the_command_is_not_repeated(run: Path, tmp_path: Path):
    origin = {"command": ["solon", "train", "r.toml", "--set", "learn.kl_coefficient=0.05", "--set", "seed=1"],
              "folder": str(tmp_path)}  # fmt: skip
    found = ending({"status": "stopped", "stopped_by": ALARM}, config(tmp_path) | {"origin": origin}, run)
    assert found.resume == (
        "solon train r.toml --set seed=1 --name n --resume --from best --set learn.kl_coefficient=0.1"
    )


def test_a_run_without_a_checkpoint_from_before_the_alarm_is_not_resumed(run: Path, tmp_path: Path):
    found = ending({"status": "stopped", "stopped_by": ALARM | {"checkpoint": None}}, config(tmp_path), run)
    assert found.resume == ""
    assert "train again under another --name" in found.remedy


@pytest.mark.parametrize(
    ("kind", "kl", "settings"),
    [
        ("gold_falls", 0.05, ["learn.kl_coefficient=0.1"]),
        ("collapse", 0.0, ["learn.kl_coefficient=0.05"]),
        ("canary", 0.05, []),
        ("audit_lost", 0.05, []),
    ],
)
def test_a_setting_is_proposed_when_a_plain_resume_would_fail_again(
    kind: str, kl: float, settings: list[str], tmp_path: Path
):
    assert changes_for(kind, config(tmp_path, kl)) == settings
    assert changes_for(kind, {}) == []


@pytest.mark.parametrize(
    ("summary", "cause", "resume"),
    [
        ({"status": "completed", "steps": 9}, "all 9 steps are trained", ""),
        ({"status": "stopped"}, "it was asked to stop", RESUME),
        ({"status": "stopped", "stopped_by": {"kind": "signal", "message": "SIGTERM"}}, "SIGTERM", RESUME),
        (
            {"status": "stopped", "stopped_by": {"kind": "draining", "message": "the node goes"}},
            "the node goes",
            RESUME,
        ),
        (
            {"status": "stopped", "stopped_by": ALARM | {"kind": "audit_lost", "message": "no longer audited"}},
            "alarm audit_lost at step 34: no longer audited",
            RESUME,
        ),
        ({"status": "failed", "failure": "RunFailedError: the engine died"}, "the engine died", RESUME),
        ({"status": "failed", "failure": "RunFailedError: x: y", "steps": 3, "steps_moved": 0}, "x: y", ""),
        ({"status": "failed"}, "the summary does not say of what", RESUME),
    ],
)
def test_every_end_has_one_cause_and_a_command_where_there_is_something_to_resume(
    summary: dict[str, Any], cause: str, resume: str, run: Path, tmp_path: Path
):
    found = ending(summary, config(tmp_path), run)
    assert (found.cause, found.resume) == (cause, resume)
    assert found.as_json()["cause"] == cause


def test_a_run_that_was_refused_before_training_is_not_resumed_but_started_again(run: Path, tmp_path: Path):
    found = ending({"status": "failed", "failure": "InputError: no such model"}, config(tmp_path), run, has_begun=False)
    assert found.cause == "no such model"
    assert found.resume == ""
    assert "under another --name" in found.remedy


# -- in the terminal --------------------------------------------------------------------------------------------------


def test_cause_evidence_and_command_stand_in_the_last_ten_lines_of_a_stopped_run(run: Path, tmp_path: Path):
    summary = make_summary(make_tally([0.1, 0.9]), before={"kind": 0.5, "mean": 0.5}, after=None)
    summary |= {"status": "stopped", "stopped_by": ALARM, "watch": WATCH}
    summary["end"] = ending(summary, config(tmp_path), run).as_json()
    console = make_console(terminal=False)
    PlainView(console).ended(summary, run)
    last = shown(console).splitlines()[-10:]
    assert [line.partition(":")[0] for line in last[-4:]] == ["why", "evidence", "what to do", "resume"]
    assert shlex.split(last[-1])[-4:] == ["--from", "best", "--set", "learn.kl_coefficient=0.1"]
    assert "held-out adherence" not in shown(console)  # there is nothing to compare with


def test_a_run_that_failed_before_its_first_step_shows_no_table_and_no_zeros():
    console = make_console(terminal=False)
    summary = make_summary(RunTotals(staleness_bound=4, total_steps=30), before={"kind": 0.5, "mean": 0.5}, after=None)
    PlainView(console).ended(summary | {"status": "failed", "end": {}}, Path("runs/x"))
    text = shown(console)
    assert text.splitlines()[0].startswith("failed after 0 steps in ")
    assert text.splitlines()[1:] == ["written to runs/x/summary.json"]


def test_an_alarm_is_shown_with_kind_evidence_remedy_and_count():
    console = make_console(terminal=False)
    view, totals = PlainView(console), make_tally([0.1])
    view.training(totals, None)  # type: ignore[arg-type]
    for step in range(16):
        totals.fault("alarm", ALARM | {"step": step})
        view.changed("alarm")
    told = [line.partition("  ")[2] for line in shown(console).splitlines() if "alarm" in line]
    assert told[0] == f"alarm gold_falls at step 0: {ALARM['message']}; {ALARM['evidence']}; {ALARM['remedy']}"
    assert [line.partition(":")[0] for line in told[1:]] == [
        "alarm gold_falls at step 3 (4 times)", "alarm gold_falls at step 15 (16 times)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code", "first"),
    [(RunFailedError("the engine died"), 1, "solon: the run failed: the engine died"),
     (InputError("no such model"), 2, "solon: no such model")],
)  # fmt: skip
def test_a_failure_prints_the_resume_command_on_stderr(
    error: Exception, code: int, first: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    error.add_note(f"resume: {RESUME}")

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("solon.cli.train.run_train", fails)
    monkeypatch.setattr(sys, "argv", ["solon", "train", "run.toml"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    assert capsys.readouterr().err.splitlines() == [first, f"resume: {RESUME}"]


# -- in doctor --------------------------------------------------------------------------------------------------------


def test_doctor_names_the_best_checkpoint_evidence_and_the_command_that_goes_back(tmp_path: Path):
    run = make_run(tmp_path, learn={"kl_coefficient": 0.05})
    checkpoint(run, 2)
    event(run, "alarm", 20, **{key: value for key, value in ALARM.items() if key != "checkpoint"})
    end(run, "stopped", stopped_by=ALARM | {"checkpoint": "step-000002"}, watch=WATCH, warnings=[])
    found = examine(run.path)
    assert (found.status, found.is_well) == ("stopped", True)
    assert "gold falls by 0.0210" in found.headline
    assert found.findings["alarms"][0].startswith("gold_falls at step 34 (stop): gold falls by")
    assert "steps 14 to 34; resume from the best checkpoint" in found.findings["alarms"][0]
    assert "an alarm stopped the run, gold liked step-000002 best of them" in found.findings["checkpoints"][0]
    assert found.do[-1].endswith("--resume --from best --set learn.kl_coefficient=0.1")
    assert not any("alarm" in line for line in found.findings.get("faults", ()))


def test_alarms_from_before_a_resume_are_not_shown_and_symptoms_are_shown_together():
    events: list[dict[str, Any]] = [
        {"event": "alarm", **ALARM},
        {"event": "resumed", "step": 20},
        {"event": "alarm", "kind": "symptom/length", "step": 25, "action": "warn", "message": "longer"},
        {"event": "alarm", "kind": "symptom/opening", "step": 30, "action": "warn", "message": "alike"},
        {"event": "alarm", "kind": "gap", "step": 31, "action": "warn", "message": "first"},
        {"event": "alarm", "kind": "gap", "step": 41, "action": "warn", "message": "again"},
    ]
    assert alarms(events) == ["gap at step 41 (warn): again", "changed since the first windows: length, opening"]


def test_doctor_reports_a_learner_that_reached_other_weights(tmp_path: Path):
    run = make_run(tmp_path)
    event(run, "learner_trained_again", 20, steps=2, same_weights=False)
    assert (
        "1 x learner trained again: to other weights than the lost learner had" in examine(run.path).findings["faults"]
    )


@pytest.mark.parametrize("steps", [0, 4])
def test_a_run_whose_groups_were_dropped_is_not_told_to_resume_with_the_settings_that_dropped_them(
    tmp_path: Path, steps: int
):
    summary = {
        "status": "failed",
        "steps": steps,
        "failure": "RunFailedError: 40 of 40 finished groups were dropped",
        "groups": {"admitted": 50, "committed": steps, "dropped": 40, "held": 10 - steps},
    }
    found = ending(summary, config(tmp_path) | {"ledger": {"max_dropped_share": 0.05}}, tmp_path / "runs" / "night")
    assert found.resume == ""
    assert "under another --name" in found.remedy
    assert ("--resume --from STEP" in found.remedy) == bool(steps)
