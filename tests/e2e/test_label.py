"""Labels without a training run, as a user makes them: the nursery's policy and its int8 judge on real engines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from solon.runs.objects import LABELLED
from tests.documented import undocumented
from tests.e2e.conftest import ROOT, environment, solon_command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ROWS = 80
BOTH = ("--set", "feedback.swap.orders=both")
SETTINGS = (
    "--set", "feedback.template=compact", "--set", "judging.max_model_len=256", "--set", "judging.threads=2",
    "--set", "write.engine.max_model_len=128", "--set", "write.max_tokens=24", "--set", "write.answers=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def prompts(nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts without answers, and two rows that cannot be labelled."""
    path = tmp_path_factory.mktemp("label") / "prompts.jsonl"
    lines = Path(nursery.train_prompts).read_text().splitlines()[:ROWS]
    path.write_text("\n".join([*lines, "{broken", '{"prompt": ""}']) + "\n")
    return path


def command(prompts: Path, out: Path, *further: str) -> list[str]:
    return solon_command(
        "label", str(prompts), "--policy", "nursery:policy", "--judge", "nursery:judge",
        "--constitution", "nursery:constitution", "--out", str(out), *SETTINGS, *further,
    )  # fmt: skip


def label(prompts: Path, out: Path, *further: str) -> dict[str, Any]:
    done = subprocess.run(
        command(prompts, out, "--json", *further), cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def finished(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A whole run in both orders, so that its verdicts do not depend on earlier questions."""
    out = tmp_path_factory.mktemp("label") / "whole"
    return label(prompts, out, *BOTH), out


def test_a_killed_start_continues_and_ends_with_the_same_preferences(
    prompts: Path, finished: tuple[dict[str, Any], Path], tmp_path: Path
):
    whole, out = finished
    assert whole["rows"] == {"total": ROWS, "done": ROWS, "left": 0, "skipped": 2}
    assert whole["labels"]["valid"] == whole["labels"]["total"] > 4 * ROWS
    killed = tmp_path / "killed"
    child = subprocess.Popen(
        command(prompts, killed, *BOTH),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (killed / "verdicts.sqlite-wal").exists():
        time.sleep(0.05)
    time.sleep(1.0)  # during labelling, or just before
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    again = label(prompts, killed, *BOTH)
    assert again["rows"] == whole["rows"]

    def written(folder: Path) -> set[str]:
        lines = (folder / "preferences.jsonl").read_text().splitlines()
        return {json.dumps([row["prompt"], row["chosen"], row["rejected"]]) for row in map(json.loads, lines)}

    # Results of one batch differ a little in rounding, so a close pair may fall on the other side of a tie.
    first, second = written(out), written(killed)
    assert len(first ^ second) <= 0.05 * len(first | second)
    assert label(prompts, killed, *BOTH)["this_start"]["labels"] == 0
    assert written(killed) == second


def test_every_file_is_described_and_every_label_of_a_preference_resolves(finished: tuple[dict[str, Any], Path]):
    import pyarrow.parquet as pq

    summary, out = finished
    assert undocumented(out, LABELLED) == []
    labels = [one for part in (out / "labels").glob("*.parquet") for one in pq.read_table(part)["label_id"].to_pylist()]
    assert len(labels) == len(set(labels)) == summary["labels"]["total"]
    # The dtype in use, not the requested one: the engine chose it.
    dtypes = {one for part in (out / "labels").glob("*.parquet") for one in pq.read_table(part)["dtype"].to_pylist()}
    assert dtypes == {"float32"}
    for line in (out / "preferences.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert {row["label_id"], *row["label_ids"]} <= set(labels)


def test_labels_requested_again_come_from_the_cache_of_verdicts(
    prompts: Path, finished: tuple[dict[str, Any], Path], tmp_path: Path
):
    first, out = finished
    again = tmp_path / "again"
    again.mkdir()
    shutil.copyfile(out / "answers.jsonl", again / "answers.jsonl")
    shutil.copyfile(out / "verdicts.sqlite", again / "verdicts.sqlite")
    second = label(prompts, again, *BOTH)
    assert first["cost"]["cache_hits"] < first["cost"]["questions"]
    assert second["cost"]["cache_hits"] == second["cost"]["questions"] == first["cost"]["questions"]
    assert second["quality"] == pytest.approx(first["quality"])


def test_the_constitutions_own_tests_pass_under_its_judge():
    done = subprocess.run(
        solon_command("check", str(ROOT / "examples" / "nursery.toml"), "--tests", "--json"),
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_cascade_asks_its_second_judge_about_little(prompts: Path, tmp_path: Path):
    summary = label(
        prompts, tmp_path / "cascade",
        "--set", "feedback.cascade.judge=nursery:audit_judge", "--set", "feedback.cascade.threshold=0.5",
    )  # fmt: skip
    assert summary["labels"]["invalid"] == 0
    assert 0 < summary["quality"]["escalated_share"] < 0.6
