"""`solon doctor`: the state of a run from its files alone, in any condition of these files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from solon.cli.main import main
from solon.doctor.diagnosis import Diagnosis, diagnose
from solon.doctor.events import pool_changes, recent_faults
from solon.doctor.facts import COUNTED_BYTES, look
from solon.doctor.files import read_lines
from solon.doctor.next_steps import resume_command
from solon.runs.directory import RunDirectory
from tests.unit.checkpoints.test_checkpoints import CheckpointFolder, make_cut

ROOT = Path(__file__).parents[3]
NOW = time.time()
NOBODY = 2**22 + 1
"""A process id that Linux never assigns."""


def make_live(**changes: Any) -> dict[str, Any]:
    return {
        "time": NOW,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "still_s": 1.0,
        "groups": {"ready": 1, "held": 4, "generating": 3},
        "out": [{"ordinal": 7, "attempt": 1, "state": "generating", "holder": "rollout-0", "seconds": 3.0}],
        "workers": [
            {"worker": "rollout-0", "state": "up", "recovered": 2},
            {"worker": "judge-0", "state": "being replaced", "recovered": 0},
        ],
        "batch_groups": 2,
        **changes,
    }


def make_run(root: Path, *, steps: int = 3, live: dict[str, Any] | None = None, **config: Any) -> RunDirectory:
    """A run of two groups a step that is in the loop. Its process is this one, until the directory is closed."""
    run = RunDirectory.create(root / "runs", "night", default="night")
    origin = {"command": ["solon", "train", "my run.toml", "--set", "a=1"], "folder": str(root), "is_job": False}
    run.write_json("config.json", {"steps": 9, "started": NOW - 100, "origin": origin, **config})
    event(run, "started", 90)
    for step in range(steps):
        ordinals = [2 * step, 2 * step + 1]
        run.append("metrics.jsonl", {"time": NOW - 50 + step, "step": step, "batch/ordinals": ordinals})
    run.write_json("live.json", live or make_live())
    return run


def event(run: RunDirectory, name: str, ago: float, **fields: Any) -> None:
    run.append("events.jsonl", {"time": NOW - ago, "event": name, **fields})


def end(run: RunDirectory, status: str, *, admitted: int = 6, held: int = 0, **fields: Any) -> Path:
    """The run ends as a whole process would."""
    event(run, "ended", 1)
    groups = {"admitted": admitted, "committed": admitted - held, "dropped": 0, "held": held}
    finished = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(NOW))
    run.write_json("summary.json", {"status": status, "steps": 3, "groups": groups, "finished": finished, **fields})
    run.close()
    return run.path


def checkpoint(run: RunDirectory, step: int, *held: int, text: str = "weights") -> Path:
    folder = CheckpointFolder(run.path / "checkpoints")
    scratch = folder.begin(step)
    (scratch / "model.safetensors").write_text(text)
    cut = make_cut(*held).model_copy(update={"admitted": 2 * step + len(held), "committed": 2 * step})
    return folder.finish(scratch, step=step, config_hash="abc", ledger=cut, held=[], run={})


def examine(path: Path) -> Diagnosis:
    return diagnose(look(path, now=NOW))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["solon", "doctor", *map(str, arguments)])
    try:
        main()
    except SystemExit as caught:
        return int(caught.code or 0)
    return 0


# -- how it stands ------------------------------------------------------------------------------------------------


def test_a_run_that_makes_progress_is_running_with_its_chain_of_waits(tmp_path: Path):
    run = make_run(tmp_path)
    found = examine(run.path)
    assert (found.status, found.is_well) == ("running", True)
    assert "after 3 steps of 9" in found.headline
    assert "judge-0 is being replaced" in found.findings["waits"]
    assert found.findings["workers"] == ["rollout-0 up (replaced 2 times), judge-0 being replaced"]
    assert found.findings["groups"] == ["6 trained, 0 dropped, 4 held; nothing is counted twice"]
    assert f"kill -TERM {os.getpid()}" in found.do[0]


def test_a_run_whose_groups_do_not_move_is_stalled_after_its_own_patience(tmp_path: Path):
    run = make_run(tmp_path, live=make_live(still_s=45.0), recovery={"stall_s": 40.0})
    found = examine(run.path)
    assert (found.status, found.is_well) == ("stalled", False)
    assert found.headline.startswith("stalled for 45 s")
    assert any(line.startswith("cd ") or line.startswith("solon train") for line in found.do)


def test_a_live_process_that_writes_nothing_is_stalled(tmp_path: Path):
    run = make_run(tmp_path, live=make_live(time=NOW - 90))
    assert examine(run.path).headline.startswith("stalled for 90 s: its process exists, but writes nothing")


def test_before_and_after_the_loop_a_silent_process_counts_as_working(tmp_path: Path):
    run = make_run(tmp_path, live=make_live(time=NOW - 300), started=NOW - 20)
    assert examine(run.path).status == "starting"
    event(run, "started", 15)
    event(run, "trained", 10, step=3)
    assert examine(run.path).status == "finishing"


def test_a_killed_run_is_dead_since_its_last_activity_and_resumes_with_one_command(tmp_path: Path):
    run = make_run(tmp_path, live=make_live(pid=NOBODY, time=NOW - 40))
    checkpoint(run, 2, 4, 5)
    run._unlock()
    (run.path / "checkpoints" / ".step-000003.tmp").mkdir()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "ti')
    found = examine(run.path)
    assert (found.status, found.is_well) == ("dead", False)
    assert time.strftime("%H:%M:%S", time.localtime(NOW - 40)) in found.headline
    assert "after 3 steps of 9" in found.headline
    assert found.do[0] == f"cd {tmp_path} && solon train 'my run.toml' --set a=1 --name night --resume"
    (checkpoints,) = found.findings["checkpoints"]
    assert "--resume continues from step-000002, which holds 2 groups; 1 step is trained again" in checkpoints
    left = " ".join(found.findings["left over"])
    assert "metrics.jsonl ends in half a line" in left
    assert ".ballast, checkpoints/.step-000003.tmp" in left
    assert "groups" in found.findings


def test_a_run_killed_while_it_started_says_so(tmp_path: Path):
    run = RunDirectory.create(tmp_path, "early", default="x")
    run.write_json("config.json", {"steps": 9, "started": NOW - 5})
    run._unlock()
    found = examine(run.path)
    assert found.status == "dead"
    assert "while it was starting" in found.headline


@pytest.mark.parametrize(("status", "is_well"), [("completed", True), ("stopped", True), ("failed", False)])
def test_an_ended_run_reports_its_cause(tmp_path: Path, status: str, is_well: bool):
    path = end(make_run(tmp_path), status, failure="RunFailedError: the disk is full")
    found = examine(path)
    assert (found.status, found.is_well) == (status, is_well)
    assert found.headline.startswith(f"{status} after 3 steps")
    assert ("the disk is full" in found.headline) == (status == "failed")
    assert any("--resume" in line for line in found.do) == (status != "completed")


def test_the_end_warnings_of_a_run_are_shown(tmp_path: Path):
    found = examine(end(make_run(tmp_path), "completed", warnings=["the judge decides by position: on 90%"]))
    assert found.do[0] == "look at this first: the judge decides by position: on 90%"
    assert found.is_well


def test_runs_are_looked_for_where_solon_runs_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SOLON_RUNS", str(tmp_path / "my runs"))
    assert call(monkeypatch, "nosuch") == 2
    assert f"look with `ls '{tmp_path}/my runs'`" in capsys.readouterr().err


def test_a_run_killed_after_a_resume_is_dead_despite_an_old_summary(tmp_path: Path):
    run = make_run(tmp_path)
    path = end(run, "stopped")
    run = RunDirectory.reopen(path)
    run.write_json("config.json", {"steps": 9, "started": NOW + 30})
    assert examine(path).status == "starting"
    run._unlock()
    assert examine(path).status == "dead"


def test_a_run_on_another_machine_is_judged_by_the_age_of_its_last_activity(tmp_path: Path):
    run = make_run(tmp_path, live=make_live(host="elsewhere"))
    run._unlock()
    assert examine(run.path).status == "running"
    run.write_json("live.json", make_live(host="elsewhere", time=NOW - 60))
    assert examine(run.path).status == "dead"


# -- numbers ------------------------------------------------------------------------------------------------------


def test_lost_and_double_counted_groups_are_named_and_no_resume_is_proposed(tmp_path: Path):
    run = make_run(tmp_path)
    event(run, "group_dropped", 3, ordinal=1, reason="no label")
    found = examine(end(run, "completed", admitted=8))
    assert not found.is_well
    numbers = " ".join(found.findings["numbers"])
    assert "2 groups are lost without a trace: 6, 7" in numbers
    assert "1 groups are counted twice: 1" in numbers
    assert "report it" in found.do[0]
    assert not any("--resume" in line for line in found.do)


def test_a_stopped_run_accounts_for_what_its_checkpoint_holds(tmp_path: Path):
    run = make_run(tmp_path)
    checkpoint(run, 3, 6, 7)
    path = end(run, "stopped", admitted=8, held=2)
    assert examine(path).is_well
    assert "8 admitted: 6 trained, 0 dropped, 2 held; nothing is counted twice, nothing is lost" in " ".join(
        examine(path).findings["groups"]
    )


def test_a_summary_that_contradicts_the_lines_or_itself_is_reported(tmp_path: Path):
    run = make_run(tmp_path)
    path = end(run, "completed")
    summary = json.loads((path / "summary.json").read_text())
    summary["groups"]["committed"] = 5
    (path / "summary.json").write_text(json.dumps(summary))
    numbers = " ".join(examine(path).findings["numbers"])
    assert "6 groups were admitted, but 5 committed, 0 dropped and 0 held" in numbers
    assert "summary.json says 5 groups committed, the lines say 6" in numbers


def test_dropped_groups_are_reported_by_reason(tmp_path: Path):
    run = make_run(tmp_path)
    for ordinal in (6, 7):
        event(run, "group_dropped", 3, ordinal=ordinal, reason="no valid label")
    assert "dropped 2: no valid label" in examine(run.path).findings["groups"]


def drop(run: RunDirectory, *ordinals: int) -> None:
    for ordinal in ordinals:
        reason = f"fewer than 2 rollouts with a valid label (low_mass {ordinal})"
        event(run, "group_dropped", 3, ordinal=ordinal, reason=reason)


def test_a_running_run_that_drops_its_groups_points_to_its_judge(tmp_path: Path):
    run = make_run(tmp_path, steps=0, ledger={"max_dropped_share": 0.05})
    drop(run, *range(3))
    assert examine(run.path).do[0].startswith("nothing, look again later")
    drop(run, *range(3, 15))
    first, end_it = examine(run.path).do
    assert first.startswith("15 of 15 finished groups were dropped, more than ledger.max_dropped_share = 5% allows")
    assert "(low_mass)" in first
    assert first.endswith("(none trained)")
    assert f"kill -TERM {os.getpid()}" in end_it


def test_a_completed_run_shows_its_warnings_first(tmp_path: Path):
    run = make_run(tmp_path)
    checkpoint(run, 3)
    path = end(run, "completed", steps_moved=2, warnings=["17 of 21 finished groups were dropped: …"])
    found = examine(path)
    assert found.is_well
    assert found.headline == "completed after 3 steps, 2 of which moved the policy"
    assert found.do[0] == "look at this first: 17 of 21 finished groups were dropped: …"
    assert found.do[1].endswith("step-000003/policy")


@pytest.mark.parametrize("status", ["completed", "stopped", "failed"])
def test_a_policy_that_no_step_moved_is_not_called_aligned(tmp_path: Path, status: str):
    run = make_run(tmp_path)
    checkpoint(run, 3)
    path = end(run, status, steps_moved=0, failure="RunFailedError: the run trained nothing: …", warnings=["…"])
    found = examine(path)
    assert "after 3 steps, none of which moved the policy" in found.headline
    assert not any("aligned" in line for line in found.do)
    if status == "failed":
        assert not found.is_well
        assert "from the start under another --name" in found.do[0]


def test_a_running_run_whose_last_step_moved_nothing_is_reported(tmp_path: Path):
    run = make_run(tmp_path)
    event(run, "nothing_moved", 20, step=1, cause="all 16 answers were cut")
    assert examine(run.path).do[0].startswith("nothing, look again later")
    run.append("metrics.jsonl", {"time": NOW - 9, "step": 3, "batch/ordinals": [6, 7], "learn/skipped/share": 1.0})
    assert examine(run.path).do[0] == "the last step moved nothing: its gradient was exactly 0"
    event(run, "nothing_moved", 8, step=3, cause="all 16 answers were cut")
    found = examine(run.path)
    assert found.do[0] == "the last step moved nothing: all 16 answers were cut"
    assert found.findings["faults"] == ["2 x nothing moved: all 16 answers were cut"]


def test_a_finished_run_whose_summary_does_not_warn_is_judged_by_its_lines(tmp_path: Path):
    run = make_run(tmp_path, steps=2, ledger={"max_dropped_share": 0.05})
    checkpoint(run, 2)
    drop(run, *range(4, 8))
    groups = {"admitted": 8, "committed": 4, "dropped": 4, "held": 0}
    found = examine(end(run, "completed", groups=groups))
    assert found.is_well
    assert found.do[0].startswith("look at this first: 4 of 8 finished groups were dropped")


# -- faults ---------------------------------------------------------------------------------------------------------


def test_faults_of_the_last_minutes_are_grouped_by_their_cause():
    def lost(ago: float, number: int) -> dict[str, Any]:
        cause = f"judge-0 died: pid {number}"
        return {"time": NOW - ago, "event": "worker_lost", "worker": "judge-0", "cause": cause}

    late = {"time": NOW - 5, "event": "stalled", "waits": []}
    assert recent_faults([lost(9000, 1), lost(50, 2), lost(40, 34), late], now=NOW) == [
        "2 x worker lost judge-0: judge-0 died: pid 2",
        "1 x stalled",
    ]


# -- checkpoints and files --------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path):
    run = make_run(tmp_path)
    checkpoint(run, 1)
    (checkpoint(run, 2) / "model.safetensors").write_text("rubbish")
    lines = examine(run.path).findings["checkpoints"]
    assert "--resume continues from step-000001" in lines[0]
    assert "model.safetensors is damaged" in lines[1]


def test_large_checkpoints_are_read_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("solon.doctor.files.HASHED_BYTES", 10)
    run = make_run(tmp_path)
    path = checkpoint(run, 1, text="x" * 100)
    (path / "model.safetensors").write_text("y" * 100)
    assert any("too large to be compared" in line for line in examine(run.path).findings["checkpoints"])
    assert not diagnose(look(run.path)).findings["checkpoints"][0].startswith("none")
    assert diagnose(look(run.path, thorough=True)).findings["checkpoints"][0].startswith("damaged")
    (path / "model.safetensors").unlink()
    assert "model.safetensors is not there" in examine(run.path).findings["checkpoints"][0]


@pytest.mark.parametrize("name", ["config.json", "live.json", "summary.json"])
@pytest.mark.parametrize("content", ["", '{"half": ', "[1]", "\x00\x00", "null"])
def test_half_written_files_are_named_and_nothing_breaks(tmp_path: Path, name: str, content: str):
    run = make_run(tmp_path)
    (run.path / name).write_text(content)
    assert any(name in line for line in examine(run.path).findings["unclear"])
    run._unlock()
    examine(run.path)


@pytest.mark.parametrize(
    "line", ["garbage", "{}", '{"time": "x", "event": "resumed"}', '{"time": 1, "event": "group_dropped"}', "[]"]
)
def test_invalid_lines_are_reported_and_nothing_breaks(tmp_path: Path, line: str):
    run = make_run(tmp_path)
    for name in ("events.jsonl", "metrics.jsonl"):
        with (run.path / name).open("a") as file:
            file.write(line + "\n")
    found = examine(run.path)
    assert found.status == "running"
    assert found.findings["unclear"]


def test_every_file_may_be_missing(tmp_path: Path):
    run = make_run(tmp_path)
    run._unlock()
    for name in ("live.json", "events.jsonl", "metrics.jsonl", "config.json"):
        assert examine(run.path).status in ("dead", "running")
        (run.path / name).unlink()
    with pytest.raises(ValueError, match=r"has none of config\.json"):
        look(run.path)


def test_a_huge_file_is_read_from_its_end_within_bounds(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(10_000)) + '{"n": ')
    lines = read_lines(path, last_bytes=1000)
    assert (lines.records[-1], lines.is_whole, lines.is_torn, lines.unreadable) == ({"n": 9999}, False, True, 0)
    assert 10 < len(lines.records) < 100


def test_huge_metrics_files_are_not_counted_unless_asked_for(tmp_path: Path):
    run = make_run(tmp_path)
    with (run.path / "events.jsonl").open("r+b") as file:
        file.truncate(COUNTED_BYTES + 1)
    assert "--thorough" in " ".join(examine(run.path).findings["unclear"])


# -- the command ------------------------------------------------------------------------------------------------------


def test_exit_0_when_healthy_1_when_not_and_2_for_a_folder_that_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path, live=make_live(time=time.time()))
    assert call(monkeypatch, "night") == 0  # a name under runs/
    run._unlock()
    assert call(monkeypatch, run.path) == 1
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    for wrong in ("empty", "nothing", str(run.path / "config.json")):
        assert call(monkeypatch, wrong) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), "expected" in err) == ("", 1, True)


def test_json_has_the_same_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, live=make_live(time=time.time()))
    assert call(monkeypatch, run.path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["healthy"], found["run"]) == ("running", True, str(run.path))
    assert found["next"]


def test_text_from_files_cannot_control_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path)
    event(run, "worker_lost", 5, worker="judge-0", cause="\x1b[2J[bold]boo")
    path = end(run, "failed", failure="\x1b]0;title\x07")
    assert call(monkeypatch, path) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]boo" in out


def test_doctor_answers_in_a_second_of_cpu_and_loads_nothing_heavy(tmp_path: Path):
    run = make_run(tmp_path, live=make_live(time=time.time()))
    checkpoint(run, 2, 4)
    code = (
        "import resource, sys\n"
        "from solon.cli.main import main\n"
        f"sys.argv = ['solon', 'doctor', {str(run.path)!r}]\n"
        "main_error = None\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'datasets', 'pyarrow', 'numpy'}\n"
        "print('CPU', used.ru_utime + used.ru_stime, sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    _, used, heavy = done.stdout.splitlines()[-1].split(maxsplit=2)
    assert heavy == "[]"
    assert float(used) < 1.0


# -- the resume command ------------------------------------------------------------------------------------------


def test_the_resume_command_is_the_command_that_started_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    origin = {"command": ["solon", "train", "r.toml"], "folder": str(tmp_path), "is_job": False}
    here, elsewhere = tmp_path / "runs" / "n", tmp_path / "disk" / "n"
    assert resume_command(here, {"origin": origin}) == "solon train r.toml --name n --resume"
    assert resume_command(elsewhere, {"origin": origin}) == (
        f"SOLON_RUNS={tmp_path}/disk solon train r.toml --name n --resume"
    )
    job = resume_command(elsewhere, {"origin": {**origin, "is_job": True, "folder": "/tmp/gone"}})
    assert (
        job == f"ray job submit --working-dir . -- env SOLON_RUNS={tmp_path}/disk solon train r.toml --name n --resume"
    )
    submitted = {"origin": {**origin, "is_job": True, "submission": "solon-n-1"}}
    assert resume_command(elsewhere, submitted) == "solon jobs resume solon-n-1"
    assert resume_command(elsewhere, submitted, back_to="best").endswith("--resume --from best")
    assert resume_command(here, {}) == "solon train RUN.toml --name n --resume"


# -- pools ------------------------------------------------------------------------------------------------------------


def test_the_last_resize_of_each_pool_is_reported_with_its_reason():
    def resized(pool: str, before: int, after: int) -> dict[str, Any]:
        return {"time": NOW, "event": "resized", "pool": pool, "before": before, "after": after, "reason": "the load"}

    joined = {"time": NOW, "event": "lane_joined", "worker": "rollout-1"}
    left = {"time": NOW, "event": "lane_left", "worker": "rollout-1", "returned": 0}
    events = [resized("rollout", 1, 2), joined, resized("judge", 1, 2), left, resized("rollout", 2, 1)]
    assert pool_changes(events) == [
        "rollout was last resized from 2 to 1 workers: the load",
        "judge was last resized from 1 to 2 workers: the load",
        "3 resizes, 1 workers joined, 1 left so far",
    ]
    assert pool_changes([*events, {"time": NOW, "event": "resumed"}]) == []
