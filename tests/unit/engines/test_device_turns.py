from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from solon.engines import device_turns
from solon.engines.device_turns import turn_on_device, wait_for_memory
from solon.errors import InputError, RunFailedError

HOLD = """
import sys, time
from pathlib import Path
from solon.engines.device_turns import turn_on_device
with turn_on_device("GPU-1", folder=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the device."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_device_is_held_by_one_process_and_free_when_that_is_killed(tmp_path: Path):
    process = holder(tmp_path)
    entered = threading.Event()

    def enter() -> None:
        with turn_on_device("GPU-1", folder=tmp_path):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    try:
        with turn_on_device("GPU-2", folder=tmp_path):  # another device needs no wait
            pass
        assert not entered.wait(0.3)
    finally:
        process.kill()  # as Ray does with an actor that is replaced
        process.wait()
    assert entered.wait(10)
    thread.join()


def test_a_failed_start_releases_the_device(tmp_path: Path):
    with pytest.raises(ValueError, match="no model"), turn_on_device("GPU-1", folder=tmp_path):
        raise ValueError("no model")
    with turn_on_device("GPU-1", folder=tmp_path):
        pass
    with turn_on_device(""):  # no GPU
        pass


def test_the_locks_lie_in_a_folder_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with turn_on_device("MIG-GPU/1/0"):
        (lock,) = (tmp_path / f"solon-{os.getuid()}" / "devices").iterdir()
    assert lock.name == "MIG-GPU_1_0.lock"
    assert lock.stat().st_mode & 0o077 == 0
    assert lock.parent.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "solon").symlink_to(tmp_path)
    with pytest.raises(InputError, match="belongs to another user"), turn_on_device("GPU-1"):
        pass


def test_memory_that_a_killed_worker_left_is_waited_for():
    free = iter([1, 1, 8])
    wait_for_memory(6, lambda: (next(free), 10), who="judge-0", within_s=5)


def test_memory_held_by_other_processes_fails_the_run_with_the_numbers():
    gib = device_turns._GIB
    started = time.monotonic()
    with pytest.raises(RunFailedError, match=r"judge-0 needs 6\.0 GiB of the GPU's 10\.0, .* leave 2\.0") as caught:
        wait_for_memory(6 * gib, lambda: (2 * gib, 10 * gib), who="judge-0", within_s=0.2)
    assert time.monotonic() - started < 5
    assert "solon check --device-gib" in str(caught.value)
