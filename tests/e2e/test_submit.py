"""`ray job submit` with the stock client, against clusters started with the stock command."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NURSERY, RAY, ROOT, TOKEN, ray_head
from tests.e2e.traps import plain_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """A cluster that requires no token, and gives a stopped job the time to end."""
    with ray_head(RAY_AUTH_MODE="disabled", RAY_JOB_STOP_WAIT_TIME_S="60") as variables:
        yield variables


def run(
    *command: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=env or plain_environment(ROOT), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def readme_command() -> str:
    """The block of the README that submits a job."""
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    (found,) = [block for block in blocks if "ray job submit" in block]
    return re.sub(r"^    ", "", found, flags=re.MULTILINE)


def test_the_submit_command_of_the_readme_makes_a_run_that_outlives_its_job(
    nursery: Any, token_head: dict[str, str], tmp_path: Path
):
    command = readme_command()
    variables = {key: value for key, value in token_head.items() if key != "RAY_API_SERVER_ADDRESS"}
    for example, here in (
        ("http://127.0.0.1:8265", token_head["RAY_API_SERVER_ADDRESS"]),
        ("/shared/runs", str(tmp_path / "shared")),
    ):
        assert command.count(example) == 1
        command = command.replace(example, here)
    folder = tmp_path / "mine"
    folder.mkdir()
    text = NURSERY.read_text().replace("steps = 30\n", "steps = 1\n").replace("batch_groups = 16", "batch_groups = 2")
    (folder / "run.toml").write_text(text[: text.index("[evaluate]")])
    done = run("bash", "-e", "-c", command, cwd=folder, env=variables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (directory,) = (tmp_path / "shared").iterdir()
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", 1)
    assert list((directory / "checkpoints").iterdir())
    assert TOKEN not in done.stdout + done.stderr

    # Without the permanent folder, the run is refused before it writes output that would be lost.
    bare = re.sub(r"env SOLON_RUNS=\S+ ", "", command)
    assert bare != command
    refused = run("bash", "-e", "-c", bare, cwd=folder, env=variables)
    assert refused.returncode != 0
    assert "is removed after the job; name one that outlives the job" in refused.stdout + refused.stderr


def test_a_submitted_folder_that_shadows_a_package_of_solons_is_refused_by_name(
    token_head: dict[str, str], tmp_path: Path
):
    folder = tmp_path / "mine"
    (folder / "actors").mkdir(parents=True)
    (folder / "actors" / "__init__.py").write_text("print('the other package ran')\n")
    variables = {**token_head, "RAY_AUTH_MODE": "token"}
    done = run(RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "solon", "train", "run.toml",
               cwd=folder, env=variables)  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "holds `actors/`, which shadows Solon's package actors in" in said
    assert "rename it there, or submit another folder" in said
    assert "the other package ran" not in said
