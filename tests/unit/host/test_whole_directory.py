from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from solon.host.whole_directory import alone, new_directory


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path):
    place = tmp_path / "deep" / "made"

    def fail() -> None:
        with new_directory(place) as scratch:
            (scratch / "half").write_text("x")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert names(place.parent) == []
    with new_directory(place) as scratch:
        (scratch / "whole").write_text("x")
        assert not place.exists()
    assert names(place.parent) == ["made"]
    assert names(place) == ["whole"]


def test_another_directory_is_replaced_only_on_request(tmp_path: Path):
    place = tmp_path / "made"
    with new_directory(place) as scratch:
        (scratch / "first").touch()
    with pytest.raises(FileExistsError), new_directory(place) as scratch:
        (scratch / "second").touch()
    assert names(place) == ["first"]
    with new_directory(place, replace=True) as scratch:
        (scratch / "second").touch()
    assert names(place) == ["second"]
    assert names(tmp_path) == ["made"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_builds_is_not(tmp_path: Path):
    code = (
        "import sys, pathlib\nfrom solon.host.whole_directory import new_directory\n"
        "with new_directory(pathlib.Path(sys.argv[1])) as scratch:\n"
        "    (scratch / 'half').touch()\n    print('begun', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "made")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        (begun,) = names(tmp_path)
        with new_directory(tmp_path / "made") as scratch:
            (scratch / "whole").touch()
            assert begun in names(tmp_path)
        child.kill()
    assert begun in names(tmp_path)
    with new_directory(tmp_path / "made", replace=True):
        assert begun not in names(tmp_path)
    assert names(tmp_path) == ["made"]


def test_two_builders_take_turns(tmp_path: Path):
    inside: list[str] = []

    def build(name: str) -> None:
        with alone(tmp_path / "made"):
            inside.append(f"{name} in")
            time.sleep(0.05)
            inside.append(f"{name} out")

    threads = [threading.Thread(target=build, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])
    assert (tmp_path / "made.lock").exists()


KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
from solon.host.whole_directory import new_directory
with new_directory(Path(sys.argv[1]), replace=True) as scratch:
    (scratch / "second").touch()
    real = Path.rename
    def rename(self, target):
        real(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = rename
"""


def test_what_a_killed_process_was_about_to_replace_is_put_back(tmp_path: Path):
    place = tmp_path / "made"
    with new_directory(place) as scratch:
        (scratch / "first").touch()
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(place)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not place.exists()

    def fail() -> None:
        with new_directory(place, replace=True):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert names(tmp_path) == ["made"]
    assert names(place) == ["first"]
