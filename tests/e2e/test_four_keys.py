"""The shortest possible run file starts on a small machine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Run, environment, solon_command

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(400)]


def solon(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        solon_command(*arguments), cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=350, check=False,
    )  # fmt: skip


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_four_keys_train_a_step_on_two_cores_and_the_record_of_the_run_is_a_run_file(nursery: Any, tmp_path: Path):
    keys = {
        "policy": nursery.policy,
        "judge": nursery.judge_fp,
        "prompts": nursery.train_prompts,
        "constitution": nursery.constitution,
    }
    (tmp_path / "run.toml").write_text("".join(f"{key} = {json.dumps(str(value))}\n" for key, value in keys.items()))
    checked = solon(tmp_path, "check", "run.toml", "--json")
    assert checked.returncode == 0, checked.stderr
    found = json.loads(checked.stdout)
    assert found["needs"]["cpus"] <= max(2, os.cpu_count() or 1)
    assert any("rollout.max_model_len is 256" in note for note in found["notes"])
    done = solon(tmp_path, "train", "run.toml", "--steps", "1", "--name", "short")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = Run(done.returncode, done.stdout, tmp_path / "runs" / "short")
    assert (run.summary["status"], run.summary["steps"]) == ("completed", 1)
    again = solon(tmp_path, "check", "runs/short/config.json", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["config_hash"] == json.loads((run.directory / "config.json").read_text())["hash"]
