"""Every end of a run leaves a summary, one sentence of cause and the command that resumes it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cluster.signals as signals_module
from actors.calls import RAY_IS_GONE, open_payload
from cluster.final_summary import FinalSummary
from cluster.ray_session import watch as ray_watch
from cluster.ray_session.processes import RayProcess
from cluster.ray_session.watch import RayWatch
from cluster.signals import Signals, ending_signals, sigterm_as_ctrl_c
from solon.errors import PayloadLostError, RunFailedError
from solon.host.processes import Process, descendants
from solon.runs import directory as run_directory
from solon.runs.directory import RunDirectory, UnwritableError

COMMAND = "solon train run.toml --name run --resume"


@pytest.fixture(autouse=True)
def _ray_is_there() -> Iterator[None]:
    yield
    RAY_IS_GONE.clear()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    made = RunDirectory.create(tmp_path, "run", default="run")
    made.write_json("config.json", {"steps": 3})
    yield made
    made.close()


def end_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {"cause": summary.get("failure"), "resume": COMMAND}


# -- Ray's own processes ----------------------------------------------------------------------------------------------


class Sleeper:
    """A process that can be killed."""

    def __init__(self) -> None:
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        found = Process.find(self.child.pid)
        assert found is not None
        self.process = found

    def as_(self, what: str, *, is_needed: bool, is_ours: bool = True) -> RayProcess:
        return RayProcess(what, is_needed, self.process, self.child if is_ours else None)


@pytest.fixture
def sleepers() -> Iterator[list[Sleeper]]:
    made = [Sleeper(), Sleeper()]
    yield made
    for sleeper in made:
        sleeper.child.kill()
        sleeper.child.wait()


class Driver:
    """The reports of a watch."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.helpers: list[str] = []

    def ray_lost(self, error: RunFailedError) -> None:
        self.lost.append(str(error))

    def helper_lost(self, what: str, cause: str) -> None:
        self.helpers.append(cause)

    def final_message(self, error: Exception) -> str:
        return f"solon: the run failed: {error}\nresume: {COMMAND}"


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_death_of_a_helper_process_is_reported_and_the_run_continues(
    sleepers: list[Sleeper], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_watch, "LOOK_EVERY_S", 0.01)
    driver = Driver()
    processes = [sleepers[0].as_("Ray's dashboard", is_needed=False), sleepers[1].as_("Ray's raylet", is_needed=True)]
    with RayWatch(driver, processes=lambda: processes) as watch:
        sleepers[0].child.kill()
        until(lambda: driver.helpers)
        time.sleep(0.1)
    assert driver.helpers == [f"Ray's dashboard (pid {sleepers[0].child.pid}) was killed by SIGKILL"]
    assert driver.lost == []
    assert watch.failure is None
    watch.leave_if_gone(RuntimeError("another end"))  # which is none of its business


def test_the_death_of_a_needed_ray_process_ends_the_run_without_further_calls_into_ray(
    sleepers: list[Sleeper], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ray_watch, "LOOK_EVERY_S", 0.01)
    driver, left = Driver(), []
    processes = [sleepers[0].as_("Ray's raylet", is_needed=True), sleepers[1].as_("Ray's dashboard", is_needed=False)]
    with RayWatch(driver, processes=lambda: processes, leave=left.append) as watch:
        sleepers[0].child.kill()
        until(lambda: driver.lost)
        assert "Ray's raylet" in driver.lost[0]
        assert "was killed by SIGKILL" in driver.lost[0]
        assert "dmesg" in driver.lost[0]
        began = time.monotonic()
        with pytest.raises(PayloadLostError, match="Ray is gone"):
            open_payload([object()])  # type: ignore[list-item]
        assert time.monotonic() - began < 1
        assert watch.failure is not None
        watch.leave_if_gone(watch.failure)
    assert left == [1]
    assert f"resume: {COMMAND}" in capsys.readouterr().err
    assert sleepers[1].child.wait(timeout=5) == -signal.SIGTERM  # the rest of our own cluster ends too


def test_a_completed_run_stays_completed_when_ray_dies_before_the_process_exits(
    sleepers: list[Sleeper], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr(ray_watch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(ray_watch, "END_S", 0.05)
    directory = RunDirectory.create(tmp_path, "run", default="run")
    words, codes, left = FinalSummary(directory, end=lambda short: {"resume": COMMAND}), [], threading.Event()
    words.write({"status": "stopped", "steps": 4})

    class Ended(Driver):
        def ray_lost(self, error: RunFailedError) -> None:
            words.ray_lost(error, steps=4, note=lambda text: None)

        def final_message(self, error: Exception) -> str:
            return words.final_message(error)

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    processes = [sleepers[0].as_("Ray's raylet", is_needed=True)]
    with RayWatch(Ended(), processes=lambda: processes, leave=leave):
        sleepers[0].child.kill()
        assert left.wait(10)
    assert codes == [0]
    assert "failed" not in capfd.readouterr().err
    assert json.loads((directory.path / "summary.json").read_text())["status"] == "stopped"


def test_a_driver_that_hangs_in_ray_is_ended_with_its_cause(
    sleepers: list[Sleeper], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ray_watch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(ray_watch, "END_S", 0.05)
    driver, left = Driver(), threading.Event()
    processes = [sleepers[0].as_("Ray's control service (GCS)", is_needed=True)]
    with RayWatch(driver, processes=lambda: processes, leave=lambda code: left.set()):
        sleepers[0].child.kill()
        assert left.wait(10)  # and the driver never came to an end by itself
    assert "solon: the run failed: Ray's control service (GCS)" in capfd.readouterr().err


def test_when_an_agent_takes_its_raylet_down_the_agent_is_reported_as_the_cause(
    sleepers: list[Sleeper], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_watch, "LOOK_EVERY_S", 0.2)
    driver = Driver()
    agent = sleepers[1].as_("Ray's dashboard agent", is_needed=True, is_ours=False)
    processes = [sleepers[0].as_("Ray's raylet", is_needed=True), agent]
    with RayWatch(driver, processes=lambda: processes, leave=lambda code: None):
        for sleeper in sleepers:
            sleeper.child.kill()
        until(lambda: driver.lost)
    assert len(driver.lost) == 1
    assert driver.lost[0].startswith("Ray's dashboard agent")


def test_a_remote_control_service_that_stops_answering_ends_the_run_before_ray_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_watch, "PROBE_EVERY_S", 0.01)
    monkeypatch.setattr(ray_watch, "SILENT_S", 0.1)
    answers = iter([True, False, True])  # one silence is none
    driver = Driver()
    with RayWatch(driver, probe=lambda: next(answers, False), processes=list, leave=lambda code: None):
        until(lambda: driver.lost)
    assert "has not answered for" in driver.lost[0]


def test_a_process_is_identified_by_its_start_time_and_its_parent(sleepers: list[Sleeper]):
    first = sleepers[0].process
    assert {s.process for s in sleepers} <= set(descendants([os.getpid()], depth=1))
    assert "time.sleep(60)" in first.command
    assert first.is_there
    assert not replace(first, born=first.born - 1).is_there  # the number belongs to another one now
    sleepers[0].child.kill()
    until(lambda: not first.is_there)  # although no one has asked yet how it ended
    assert Process.find(first.pid) is None


# -- records ----------------------------------------------------------------------------------------------------------


async def test_the_loss_of_ray_is_recorded_before_the_driver_reacts(directory: RunDirectory):
    words, notes = FinalSummary(directory, end=end_of), []
    words.begin()
    error = RunFailedError("Ray's raylet was killed by SIGKILL")
    thread = threading.Thread(target=lambda: words.ray_lost(error, steps=7, note=notes.append))
    thread.start()
    thread.join()
    found = json.loads((directory.path / "summary.json").read_text())
    assert found["status"] == "failed"
    assert found["steps"] == 7
    assert "SIGKILL" in found["failure"]
    assert found["end"]["resume"] == COMMAND
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5)
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    assert "SIGKILL" in notes[0]
    assert words.write({"status": "failed", "steps": 7, "wall_s": 3.0}) is None
    assert json.loads((directory.path / "summary.json").read_text())["wall_s"] == 3.0


async def test_a_summary_of_a_finished_run_is_not_replaced_when_ray_dies_after_it(directory: RunDirectory):
    words = FinalSummary(directory, end=end_of)
    words.write({"status": "completed", "steps": 3})
    words.ray_lost(RunFailedError("Ray's raylet ended"), steps=3, note=print)
    found = json.loads((directory.path / "summary.json").read_text())
    assert found["status"] == "completed"


def test_a_run_whose_folder_was_removed_leaves_its_configuration_and_its_summary(directory: RunDirectory):
    shutil.rmtree(directory.path)
    with pytest.raises(UnwritableError, match="is gone: it was removed or moved while the run used it"):
        directory.append("events.jsonl", {"event": "published"})
    assert not directory.path.exists()  # nothing made half a run of it
    summary: dict[str, Any] = {"status": "failed", "steps": 2, "end": {"resume": COMMAND}}
    error = FinalSummary(directory, end=end_of).write(summary)
    assert isinstance(error, UnwritableError)
    assert json.loads((directory.path / "config.json").read_text()) == {"steps": 3}
    assert json.loads((directory.path / "summary.json").read_text())["end"]["resume"] == COMMAND


def test_a_folder_created_again_by_another_process_is_not_the_run(directory: RunDirectory):
    shutil.rmtree(directory.path)
    directory.path.mkdir()
    with pytest.raises(UnwritableError, match="is gone"):
        directory.write_json("live.json", {})
    assert list(directory.path.iterdir()) == []


def test_nothing_is_created_when_the_folder_of_all_runs_is_gone_too(tmp_path: Path):
    made = RunDirectory.create(tmp_path / "runs", "run", default="run")
    made.write_json("config.json", {"steps": 3})
    shutil.rmtree(tmp_path / "runs")
    error = FinalSummary(made, end=end_of).write({"status": "failed", "steps": 0})
    assert "is gone: it was removed or moved" in str(error)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_becomes_unwritable_gives_one_sentence(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, code: int
):
    def refuse(path: Path, _: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(run_directory, "_append", refuse)
    with pytest.raises(RunFailedError, match=r"run directory .* cannot be written: .*--resume") as e:
        directory.append("events.jsonl", {})
    assert "\n" not in str(e.value)
    # A file of the learner's, written by another process, is explained in the same way; a foreign one is not touched.
    inside = OSError(code, os.strerror(code), str(directory.path / "checkpoints" / ".step-000002.tmp"))
    assert isinstance(directory.explained(inside), RunFailedError)
    foreign = OSError(code, os.strerror(code), "/etc/hosts")
    assert directory.explained(foreign) is foreign


async def test_a_summary_that_cannot_be_written_is_reported_with_the_status(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path, _: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(run_directory, "_write_whole", refuse)
    summary: dict[str, Any] = {"status": "stopped", "steps": 2}
    error = FinalSummary(directory, end=end_of).write(summary)
    assert "the run ended as stopped" in str(error)
    assert "Read-only file system" in summary["unwritten"]


# -- signals ----------------------------------------------------------------------------------------------------------


async def test_a_hangup_ends_a_run_after_its_step_as_sigterm_does():
    stop, told = asyncio.Event(), []
    signals = Signals(stop, tell=told.append)
    with signals:
        signals.may_finish = True
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(stop.wait(), 5)
        await asyncio.sleep(0.1)  # one signal does not count as two, which would end the run before its checkpoint
    assert signals.received == "SIGHUP"
    assert told == ["asked to stop (SIGHUP): the current step is finished and saved first"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
async def test_a_signal_repeated_at_once_is_one_request_and_a_later_one_is_a_second(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(signals_module, "TOGETHER_S", 0.3)

    async def asked() -> str:
        with Signals(asyncio.Event()) as signals:
            signals.may_finish = True
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), number)  # as a shell does for its terminal, or a service manager for a group
            await asyncio.sleep(0.4)
            told.append("continued")
            os.kill(os.getpid(), number)
            await asyncio.sleep(5)
        return "ended by itself"

    told: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        await asyncio.ensure_future(asked())
    assert told == ["continued"]


async def test_a_second_ctrl_c_counts_however_soon_it_comes():
    async def asked() -> None:
        with Signals(asyncio.Event()) as signals:
            signals.may_finish = True
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.05)
            await asyncio.sleep(5)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.ensure_future(asked())


async def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in ending_signals()
        stop = asyncio.Event()
        with sigterm_as_ctrl_c() as take_again:
            take_again()
            with Signals(stop):
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(0.05)
        assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_while_ray_starts_is_deferred_and_reaches_no_new_process():
    with sigterm_as_ctrl_c() as take_again:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        os.kill(child.pid, signal.SIGHUP)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGHUP)
        time.sleep(0.3)
        assert child.poll() is None
        child.kill()
        child.wait()
        with pytest.raises(KeyboardInterrupt):
            take_again()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


SPEAKER = """\
import asyncio, sys
sys.stderr = open({done!r} + ".err", "w")
sys.path[:0] = [{root!r}]
from cluster.signals import Signals

async def main():
    stop = asyncio.Event()
    signals = Signals(stop)
    with signals:
        signals.may_finish = True
        print("ready", flush=True)
        await stop.wait()
        print("a last word", flush=True)
    open({done!r}, "w").write("ended in order")

asyncio.run(main())
"""


def test_a_run_without_a_terminal_can_write_messages_until_its_end(tmp_path: Path):
    done = tmp_path / "done"
    root = str(Path(__file__).resolve().parents[3])
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", SPEAKER.format(root=root, done=str(done))])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)  # the terminal hangs up
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, done.with_name("done.err").read_text()
    assert done.read_text() == "ended in order"
