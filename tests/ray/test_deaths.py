"""Ray's own processes die under a run, its terminal closes, its driver is stopped, its folder is removed: every end
leaves a summary, one sentence of cause and the command that resumes it, and that command completes the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.standin_runs import Child, audit, lines, standin_command, start

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

STEPS = 400
QUICK = json.dumps({"seconds": 0.1})
SETTINGS = ("recovery.beat_every_s=0.5", "recovery.beat_timeout_s=3", "recovery.grace_s=2", "checkpoint_every=5")
ENDS_WITHIN_S = 30


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Short: a socket below it may have 107 characters in all."""
    with tempfile.TemporaryDirectory(prefix="so", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def command(steps: int, *more: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return standin_command("run", "--steps", str(steps), *settings, *more)


def find(child: Child, *, name: str = "", title: str = "") -> psutil.Process:
    """One of the processes of Ray that the run started."""
    for process in psutil.Process(child.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if name == process.name() or (title and title in words and process.name() != "raylet"):
                return process
    raise AssertionError(f"the run has no process {name}{title}")


def wait_for_more_steps(child: Child, steps: int = 6) -> None:
    before = len(lines(child.directory / "metrics.jsonl"))
    child.wait_for(lambda: len(lines(child.directory / "metrics.jsonl")) >= before + steps)


def assert_ended_in_order(child: Child, what: str) -> None:
    """Exit code, summary, cause, command; nothing is left; no traceback."""
    assert child.end(ENDS_WITHIN_S) == 1, child.output[-3000:]
    summary, output = child.summary, child.output
    assert summary["status"] == "failed"
    assert what in summary["failure"]
    assert f"solon: the run failed: {what}" in output
    assert what in summary["end"]["cause"]
    assert summary["end"]["resume"].endswith("--name run --resume")
    assert f"resume: {summary['end']['resume']}" in output
    assert "Traceback" not in output
    child.wait_until_gone()


DEATHS: dict[str, dict[str, Any]] = {
    "Ray's raylet": {"name": "raylet"},
    "Ray's control service (GCS)": {"name": "gcs_server"},
    "Ray's dashboard agent": {"title": "ray::DashboardAgent"},
}


def test_a_run_survives_the_death_of_every_ray_process_and_of_its_terminal(temporary: Path, tmp_path: Path):
    for number, (what, where) in enumerate(DEATHS.items()):
        resume = ["--resume"] if number else []
        with start(command(STEPS, *resume), tmp_path, temporary, "run", SOLON_STANDIN=QUICK) as child:
            wait_for_more_steps(child)
            if not number:  # the run does not miss a helper
                for helper in ("dashboard/dashboard.py", "log_monitor.py", "/autoscaler/"):
                    find(child, title=helper).kill()
                wait_for_more_steps(child, 20)
                lost = [e for e in lines(child.directory / "events.jsonl") if e["event"] == "ray_helper_lost"]
                assert {event["worker"] for event in lost} == {
                    "Ray's dashboard", "Ray's log monitor", "Ray's autoscaler"
                }  # fmt: skip
                assert all("(pid " in event["cause"] for event in lost)
            find(child, **where).kill()
            assert_ended_in_order(child, what)
    # A closed terminal signals every process in it.
    with start(command(STEPS, "--resume"), tmp_path, temporary, "run", SOLON_STANDIN=QUICK) as child:
        wait_for_more_steps(child)
        os.killpg(child.process.pid, signal.SIGHUP)
        assert child.end(ENDS_WITHIN_S) == 0, child.output[-3000:]
        assert child.summary["status"] == "stopped"
        assert child.summary["steps"] == max(int(p.name[5:]) for p in (child.directory / "checkpoints").glob("step-*"))
    # A driver that is stopped for longer than any deadline blames no worker.
    trained = len({line["step"] for line in lines(child.directory / "metrics.jsonl")})
    with start(command(trained + 60, "--resume"), tmp_path, temporary, "run", SOLON_STANDIN=QUICK) as child:
        began = len(lines(child.directory / "events.jsonl"))
        wait_for_more_steps(child)
        child.process.send_signal(signal.SIGSTOP)
        time.sleep(9)
        child.process.send_signal(signal.SIGCONT)
        assert child.end() == 0, child.output[-3000:]
        events = lines(child.directory / "events.jsonl")[began:]
        assert [e for e in events if e["event"] in ("worker_lost", "group_expired", "group_lost", "stalled")] == []
        away = [event["seconds"] for event in events if event["event"] == "driver_was_away"]
        assert len(away) == 1
        assert 4 < away[0] < 9
    assert child.summary["status"] == "completed"
    assert child.summary["end"]["resume"] is None
    assert audit(child.directory).is_balanced


def test_a_run_whose_directory_is_removed_ends_with_one_message_and_its_remedy(temporary: Path, tmp_path: Path):
    with start(command(STEPS), tmp_path, temporary, "run", SOLON_STANDIN=QUICK) as child:
        wait_for_more_steps(child)
        while child.directory.exists():  # files being written may obstruct a removal
            shutil.rmtree(child.directory, ignore_errors=True)
            if (child.directory / "summary.json").exists():
                break
        assert child.end(ENDS_WITHIN_S) == 1, child.output[-3000:]
        assert "is gone: it was removed or moved while the run used it" in child.output
        assert "Traceback" not in child.output
        assert sorted(path.name for path in child.directory.iterdir()) == ["config.json", "summary.json"]
        assert "was removed or moved" in child.summary["failure"]
        assert f"resume: {child.summary['end']['resume']}" in child.output
        child.wait_until_gone()
