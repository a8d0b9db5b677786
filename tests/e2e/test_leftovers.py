"""A run leaves nothing behind in any kind of end: no process, no shared memory, no file in the temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.ray_session.session_folder import session_folder
from tests.e2e.conftest import NURSERY, solon_command
from tests.e2e.standin_runs import Child, orphans, standin_command, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder for the run; its name is short: a socket below it may have 107 characters in all."""
    with tempfile.TemporaryDirectory(prefix="so", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


@contextmanager
def session_folder_in(temporary: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(temporary))
        with session_folder():
            yield


def assert_nothing_is_left(child: Child, shared_memory: set[str]) -> None:
    assert len(child.seen) > 5, "the cluster was never seen"
    child.wait_until_gone()
    assert orphans(shared_memory) == []
    sessions = list(child.temporary.glob(f"solon-{os.getuid()}/[0-9]*"))
    if child.process.returncode in (0, 2):  # Ray's logs do not explain a refusal
        assert list(child.temporary.iterdir()) == []
    elif child.process.returncode > 0:
        assert {entry.name for session in sessions for entry in session.iterdir()} == {"logs", "lock"}
    else:  # the next start clears the leftovers of a killed driver
        with session_folder_in(child.temporary):
            assert {entry.name for session in sessions for entry in session.iterdir()} == {"logs", "lock"}


@pytest.mark.parametrize(
    ("learner", "code", "status", "message"),
    [
        ("", 0, "completed", ""),
        ("refuses", 2, "failed", "solon: policy got a stand-in, expected a model; name one"),
        ("fails", 1, "failed", "solon: the run failed: the loss of step 1 is not finite"),
        ("still", 1, "failed", "solon: the run failed: the run trained nothing: none of 4 steps moved the policy: "),
    ],
)
def test_after_a_run_that_ends_by_itself(
    nursery: Any, tmp_path: Path, temporary: Path, shared_memory: set[str],
    learner: str, code: int, status: str, message: str,
):  # fmt: skip
    command = standin_command("ends", "--steps", "4")
    with start(command, tmp_path, temporary, "ends", SOLON_STANDIN=json.dumps({"learner": learner})) as child:
        assert child.end() == code, child.output[-3000:]
        assert child.summary["status"] == status
        assert message in child.output
        assert "Traceback" not in child.output
        assert_nothing_is_left(child, shared_memory)


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGTERM], 0), ([signal.SIGINT, signal.SIGINT], 0), ([signal.SIGKILL], -signal.SIGKILL)],
    ids=["SIGTERM", "SIGINT twice", "SIGKILL"],
)
def test_after_a_run_that_is_ended(
    nursery: Any, tmp_path: Path, temporary: Path, shared_memory: set[str], signals: list[signal.Signals], code: int
):
    command = standin_command("ended", "--steps", "500")
    with start(command, tmp_path, temporary, "ended", SOLON_STANDIN=json.dumps({"seconds": 0.5})) as child:
        child.wait_for_step(2)
        for number in signals:
            child.process.send_signal(number)
        assert child.end() == code, child.output[-3000:]
        assert "Traceback" not in child.output
        assert_nothing_is_left(child, shared_memory)
        if code == 0:
            assert child.summary["status"] == "stopped"
        else:
            assert not (child.directory / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_after_a_run_with_real_engines(
    nursery: Any, tmp_path: Path, temporary: Path, shared_memory: set[str], number: signal.Signals
):
    command = solon_command("train", str(NURSERY), "--name", "real", "--steps", "50")
    with start(command, tmp_path, temporary, "real") as child:
        child.wait_for_step(1)
        child.process.send_signal(number)
        child.end()
        assert_nothing_is_left(child, shared_memory)


@pytest.fixture(autouse=True)
def _room() -> None:
    assert shutil.disk_usage("/tmp").free > 2**30, "the temporary folder is full"
