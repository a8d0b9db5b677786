"""How processes end, in words."""

from __future__ import annotations

import signal
from pathlib import Path

from solon.host.processes import failure_of


def test_a_failure_names_the_signal_and_shows_the_end_of_the_log(tmp_path: Path):
    log = tmp_path / "stage.log"
    log.write_text("\n".join(f"line {n}" for n in range(30)), encoding="utf-8")
    killed = failure_of(-signal.SIGKILL, log)
    assert killed.startswith("was killed by SIGKILL; the machine may have run out of memory. Its last output:\n")
    assert killed.endswith("line 29")
    assert "line 17\n" not in killed
    assert failure_of(3, log).startswith("ended with exit code 3. Its last output:")


def test_a_log_that_is_gone_does_not_hide_how_the_process_ended(tmp_path: Path):
    assert failure_of(-signal.SIGTERM, tmp_path / "none").startswith("was killed by SIGTERM. Its last output:\n(no log")
