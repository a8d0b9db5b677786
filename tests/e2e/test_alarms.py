"""A run on real engines whose judge has a known fault: its watch stops it, and the printed command ends better.

The same on lanes that live in one process, in seconds: `tests/unit/recovery/test_alarm_runs.py`.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NURSERY, environment

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(1800)]

SETTINGS = (
    "watch.audit_judge=nursery:audit_judge",
    "watch.audit_share=0.5",
    "watch.trend_windows=4",
    "watch.action=stop",
    "learn.kl_coefficient=0.02",
    "learn.learning_rate=1e-3",
    "checkpoint_every=3",
)
LIKES_LENGTH = json.dumps({"bias": "length", "strength": 8.0})


LIKES_A_PHRASE = json.dumps({"bias": "phrase", "strength": 4.0, "phrase": "thank you"})


def run(folder: Path, *words: str, bias: str = LIKES_LENGTH) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.biased_solon", *words], cwd=folder, env=environment(SOLON_BIAS=bias),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    summary: dict[str, Any] = json.loads((folder / "runs" / "biased" / "summary.json").read_text())
    return done, summary


def test_a_run_with_a_judge_that_likes_length_stops_and_ends_better_when_it_goes_back(nursery: Any, tmp_path: Path):
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    done, stopped = run(tmp_path, "train", str(NURSERY), "--name", "biased", "--steps", "60", *settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert stopped["status"] == "stopped", done.stdout[-3000:]
    last = dict(line.split(": ", 1) for line in done.stdout.splitlines()[-10:] if ": " in line)
    assert {"why", "evidence", "what to do", "resume"} <= set(last)
    words = shlex.split(last["resume"])
    done, resumed = run(tmp_path, *words[words.index("solon") + 1 :])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert resumed["watch"]["last"]["gold"] > stopped["watch"]["last"]["gold"]


def test_a_run_whose_judge_rewards_one_phrase_stops_with_cause_evidence_and_command(nursery: Any, tmp_path: Path):
    settings = [
        part
        for setting in ("learn.kl_coefficient=0", "learn.learning_rate=2e-3", *SETTINGS[:2], SETTINGS[3])
        for part in ("--set", setting)
    ]
    done, stopped = run(
        tmp_path, "train", str(NURSERY), "--name", "biased", "--steps", "60", *settings, bias=LIKES_A_PHRASE
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert stopped["status"] == "stopped", done.stdout[-3000:]
    last = dict(line.split(": ", 1) for line in done.stdout.splitlines()[-10:] if ": " in line)
    assert any(kind in last["why"] for kind in ("principle_lost", "collapse", "gold_falls", "past_peak")), last
    assert {"evidence", "what to do", "resume"} <= set(last)
