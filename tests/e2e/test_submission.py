"""`solon submit` and `solon jobs` against a cluster that requires a token: every way in which a job ends, what it
leaves behind, and every refusal. Engines and learner are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.conftest import NURSERY, TOKEN, free_ports
from tests.e2e.standin_runs import SETTINGS, audit, lines, orphans

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

STEPS = 8
SLOW = json.dumps({"seconds": 1.0})


class Client:
    """The command line of a person who submits from a folder."""

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        self.folder = folder / "mine"
        self.runs = folder / "shared"
        self.folder.mkdir()
        (self.folder / "run.toml").write_text(NURSERY.read_text())
        self.url = variables["RAY_API_SERVER_ADDRESS"]
        dropped = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "SOLON_RUNS")
        self.variables = {key: value for key, value in variables.items() if key not in dropped}
        self.shared_memory = {path.name for path in Path("/dev/shm").iterdir()}

    def submission(self, *more: str, standin: str = "{}", steps: int = STEPS) -> list[str]:
        settings = [part for one in (*SETTINGS, "checkpoint_every=3") for part in ("--set", one)]
        return ["submit", "run.toml", "--address", self.url, "--runs", str(self.runs), "--steps", str(steps),
                "--env", f"SOLON_STANDIN={standin}", "--grace", "60", *settings, *more]  # fmt: skip

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.e2e.standin_submit", *arguments]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env={**self.variables, **variables}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip

    def jobs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("jobs", *arguments, "--address", self.url)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that is still running."""
        log = (self.folder.parent / f"log-{time.monotonic_ns()}").open("w+")
        child = subprocess.Popen(
            self.command(*arguments), cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        child.said = lambda: Path(log.name).read_text()  # type: ignore[attr-defined]
        try:
            yield child
        finally:
            child.kill()
            child.wait()
            log.close()

    def wait_for_step(self, name: str, step: int, said: Callable[[], str]) -> None:
        deadline = time.monotonic() + 150
        while len(lines(self.runs / name / "metrics.jsonl")) < step:
            assert time.monotonic() < deadline, said()[-3000:]
            time.sleep(0.2)

    def assert_nothing_is_left(self) -> None:
        """No actor, no placement group, no request for nodes, no shared memory."""
        deadline = time.monotonic() + 30
        while left := self._left():
            assert time.monotonic() < deadline, left
            time.sleep(0.5)
        assert orphans(self.shared_memory) == []

    def _left(self) -> list[Any]:
        def ask(path: str) -> Any:
            return requests.get(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30).json()[
                "data"
            ]

        actors = [one for one in ask("/api/v0/actors?detail=1")["result"]["result"] if one["state"] != "DEAD"]
        groups = [one for one in ask("/api/v0/placement_groups")["result"]["result"] if one["state"] != "REMOVED"]
        report = (ask("/api/cluster_status")["clusterStatus"] or {}).get("loadMetricsReport", {})
        return [*actors, *groups, *report.get("requestDemand", []), *report.get("resourceDemand", [])]


@pytest.fixture
def client(nursery: Any, token_head: dict[str, str], tmp_path: Path) -> Client:
    return Client(token_head, tmp_path)


def test_a_job_is_followed_left_alone_stopped_in_order_and_resumed_and_leaves_nothing(client: Client):
    with client.running(*client.submission("--name", "night", standin=SLOW)) as child:
        client.wait_for_step("night", 1, child.said)  # type: ignore[attr-defined]
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 0
        said = child.said()  # type: ignore[attr-defined]
    assert "solon-night-1 continues without this terminal" in said
    for words in (
        "jobs logs solon-night-1 -f",
        "jobs stop solon-night-1",
        "jobs resume solon-night-1",
        f"{client.runs}/night",
    ):
        assert words in said
    assert TOKEN not in said
    again = client.run(*client.submission("--name", "night"))
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "the run night has the job solon-night-1, which is running" in again.stderr

    with client.running("jobs", "logs", "solon-night-1", "-f", "--address", client.url) as child:
        stopped = client.jobs("stop", "solon-night-1", "--json")
        assert stopped.returncode == 0, stopped.stderr
        assert json.loads(stopped.stdout)["status"] in ("STOPPED", "SUCCEEDED")
        assert "it was killed" not in stopped.stderr
        assert child.wait(timeout=60) == 0, child.said()  # type: ignore[attr-defined]
    summary = json.loads((client.runs / "night" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["steps"] < STEPS
    client.assert_nothing_is_left()

    resumed = client.jobs("resume", "solon-night-1")
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr
    assert "solon-night-2 succeeded" in resumed.stdout
    summary = json.loads((client.runs / "night" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", STEPS)
    assert audit(client.runs / "night").is_balanced
    listed = json.loads(client.jobs("list", "--json").stdout)["jobs"]
    assert [job["id"] for job in listed if job["run"] == "night"] == ["solon-night-1", "solon-night-2"]
    state = client.jobs("status", "solon-night-2")
    assert f"{client.runs}/night" in state.stdout
    client.assert_nothing_is_left()


@pytest.mark.parametrize(("learner", "code"), [("fails", 1), ("refuses", 2)])
def test_the_exit_code_of_a_run_is_that_of_its_submission(client: Client, learner: str, code: int):
    done = client.run(*client.submission("--name", learner, standin=json.dumps({"learner": learner}), steps=4))
    assert done.returncode == code, done.stdout[-3000:] + done.stderr
    assert done.stderr.startswith(f"solon: solon-{learner}-1 failed (exit code {code})")
    next_step = "correct the file, and submit it again" if code == 2 else f"solon jobs resume solon-{learner}-1"
    assert next_step in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    client.assert_nothing_is_left()


def test_a_variable_that_the_cluster_lacks_is_named_by_the_job(client: Client):
    done = client.run(*client.submission("--name", "lacks", "--require-env", "JUDGE_KEY_OF_TESTS"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the environment of this job lacks JUDGE_KEY_OF_TESTS" in done.stdout
    client.assert_nothing_is_left()


def test_a_submission_that_cannot_be_made_ends_with_one_message_and_sends_nothing(client: Client):
    closed, empty = f"http://127.0.0.1:{free_ports(1)[0]}", client.folder.parent / "empty"
    empty.mkdir()
    wrong = client.folder.parent / "wrong"
    wrong.write_text("another token")
    cases: list[tuple[list[str], dict[str, str], str]] = [
        (["--address", closed], {}, "connection refused"),
        ([], {"HOME": str(empty)}, "asks for a token, but there is none in"),
        ([], {"RAY_AUTH_TOKEN_PATH": str(wrong)}, "refuses the token in"),
        (["--env", "JUDGE_API_KEY=abc"], {}, "--require-env JUDGE_API_KEY"),
        (["--runs", "runs"], {}, "expected an absolute path"),
        (["--set", "learn.learning_rat=1"], {}, "learning_rat"),
    ]
    for more, variables, words in cases:
        done = client.run(*client.submission("--name", "never", *more), **variables)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert words in done.stderr
    for command in ("logs", "stop", "status", "resume"):
        done = client.jobs(command, "solon-never-1")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert "knows no job solon-never-1" in done.stderr
    assert not (client.runs / "never").exists()
    assert os.environ.get("SOLON_RUNS") is None
