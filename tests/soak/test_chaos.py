"""The chaos harness at length: `make test-soak`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cluster_of_our_own import ROOT

pytestmark = pytest.mark.soak


def chaos(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    report = tmp_path / "chaos.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--json", str(report), *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(report.read_text())


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("target", [0, 1])
def test_two_hundred_faults_lose_nothing_and_double_nothing(tmp_path: Path, target: int):
    found = chaos(tmp_path, "--kills", "200", "--target", str(target))
    assert sum(found["injected"].values()) == 200
    assert found["complaints"] == []


@pytest.mark.timeout(2400)
def test_the_real_engines_survive_twenty_faults_and_learn_equally_well(nursery: Any, tmp_path: Path):
    found = chaos(tmp_path, "--engines", "real", "--kills", "20", "--undisturbed", "3")
    assert found["complaints"] == []  # an unexpected adherence is one
    assert len(found["expected"]) == 2


@pytest.mark.timeout(2400)
def test_half_an_hour_of_faults_leaves_memory_files_and_threads_unchanged(tmp_path: Path):
    found = chaos(tmp_path, "--soak", "1800")
    assert found["complaints"] == []
    soak = found["soak"]
    assert soak["minutes_without_a_step"] == []
    assert soak["rss_mib"]["per_hour"] < 60
    assert abs(soak["open_files"]["per_hour"]) < 20
    assert abs(soak["threads"]["per_hour"]) < 10
