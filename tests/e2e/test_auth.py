"""A cluster that requires a token: the stock client and `solon` with the token, without it, and with a wrong one."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import RAY, ROOT, environment, ray_head, solon_command
from tests.unit.run_files import make_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

TOKEN = "5ec4e7" * 8
JOIN = "from cluster.ray_session.session import cluster\nwith cluster() as info: print('CPUs', info.resources['CPU'])"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster in token mode. Yields an environment without the token."""
    home = tmp_path_factory.mktemp("home")
    path = home / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN)
    with ray_head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(path)) as variables:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            del variables[name]
        wait_until_up({**variables, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
        # A home without ~/.ray: tests must not use the developer's own token.
        empty = tmp_path_factory.mktemp("elsewhere")
        yield {**variables, "HOME": str(empty), "PYTHONPATH": str(ROOT)}


def wait_until_up(variables: dict[str, str]) -> None:
    for _ in range(60):
        done = run(variables, RAY, "job", "list")
        if done.returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(done.stdout + done.stderr)


def run(variables: dict[str, str], *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip


def test_a_submitted_job_joins_with_the_token_of_its_cluster(head: dict[str, str], tmp_path: Path):
    variables = {**head, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    done = run(variables, RAY, "job", "submit", "--working-dir", ".", "--", "python", "-c", JOIN)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "CPUs 2.0" in said
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("token", "words"), [("", "Missing authentication token"), ("wrong", "Invalid authentication")]
)
def test_a_job_without_the_token_is_rejected(head: dict[str, str], token: str, words: str):
    variables = {**head, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else head
    done = run(variables, RAY, "job", "submit", "--working-dir", ".", "--", "python", "-c", "print('was run')")
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert "was run\n" not in done.stdout


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({}, "asks for a token, but there is none in"),
        ({"RAY_AUTH_TOKEN": "wrong"}, "refuses the token in the environment variable RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, but RAY_AUTH_MODE is disabled"),
    ],
)
def test_a_run_that_joins_without_the_token_ends_with_one_message(
    head: dict[str, str], tmp_path: Path, extra: dict[str, str], words: str
):
    path = make_run(tmp_path, '[feedback]\ntask = "pointwise"\ntemplate = "compact"\n')
    done = run({**head, "RAY_ADDRESS": head["GCS"], **extra}, *solon_command("train", str(path)), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"solon: the Ray cluster at {head['GCS']}")
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_cluster_started_here_requires_a_token_that_only_its_owner_can_read(tmp_path: Path):

    code = (
        "import os, urllib.request, urllib.error\n"
        "from cluster.ray_session.session import ask, cluster\n"
        "with cluster() as info:\n"
        "    print(os.environ['RAY_AUTH_MODE'], info.token_path)\n"
        "    print(ask(info.address), ask(info.address, token=open(info.token_path).read()))\n"
        "    print(info.dashboard_url)\n"
        "    try: urllib.request.urlopen(f'http://{info.dashboard_url}/api/version', timeout=20)\n"
        "    except urllib.error.HTTPError as error: print('dashboard', error.code)\n"
    )
    variables = environment(HOME=str(tmp_path))
    variables.pop("RAY_AUTH_MODE")
    done = run(variables, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    mode, answers, dashboard, *rest = done.stdout.splitlines()
    path = tmp_path / ".ray" / "auth_token"
    assert mode == f"token {path}"
    assert answers == "refuses answers"
    assert dashboard.startswith("127.0.0.1:")
    assert rest == ["dashboard 401"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() not in done.stdout + done.stderr
