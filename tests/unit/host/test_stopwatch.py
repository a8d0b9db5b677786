"""Time of work that is interrupted is not lost, except the last moments of a process that was killed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from solon.host import stopwatch
from solon.host.stopwatch import running


def test_time_of_an_interrupted_start_is_added_and_the_end_leaves_no_file(tmp_path: Path):
    path = tmp_path / "seconds"

    def interrupted() -> None:
        with running(path):
            time.sleep(0.05)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert float(path.read_text()) >= 0.05
    path.write_text("100.0")
    with running(path) as watch:
        pass
    assert 100 <= watch.seconds < 101
    assert not path.exists()


def test_time_is_written_while_work_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopwatch, "BEAT_S", 0.01)
    path = tmp_path / "seconds"
    with running(path):
        deadline = time.monotonic() + 5
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.exists()


@pytest.mark.parametrize("text", ["", "much", "-5"])
def test_a_file_that_holds_no_time_counts_nothing(tmp_path: Path, text: str):
    path = tmp_path / "seconds"
    path.write_text(text)
    with running(path) as watch:
        assert watch.seconds < 1
