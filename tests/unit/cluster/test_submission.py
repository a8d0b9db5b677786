"""What `solon submit` checks before it sends anything, and how it follows a job whose log or cluster comes and goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.submission.connection import (
    Node,
    UnreachableError,
    Versions,
    check_versions,
    job_address,
    labels_for_driver,
)
from cluster.submission.follow import Ended, Follower
from cluster.submission.package import check_package, measure
from cluster.submission.request import Request, check_paths, make_request
from cluster.submission.submit import next_attempt
from solon.errors import InputError, RunFailedError
from tests.unit.run_files import make_run

SETTINGS = '[feedback]\ntask = "pointwise"\ntemplate = "compact"\n'


def request(folder: Path, path: Path, **changes: Any) -> tuple[Request, list[str]]:
    given: dict[str, Any] = {
        "name": "night", "steps": None, "seed": None, "overrides": [], "runs": "/shared", "variables": [],
        "required": [], "stop_wait_s": 90,
    }  # fmt: skip
    return make_request(path, folder=folder, **given | changes)


def test_the_job_has_the_command_the_grace_and_no_values_of_secrets(tmp_path: Path):
    made, paths = request(
        tmp_path,
        make_run(tmp_path, SETTINGS),
        steps=3,
        overrides=["seed=2"],
        variables=["MODE=x"],
        required=["HF_TOKEN"],
    )
    assert made.entrypoint.endswith("--name night --steps 3 --set seed=2")
    assert made.environment() == {
        "MODE": "x", "SOLON_REQUIRED_ENV": "HF_TOKEN", "SOLON_RUNS": "/shared", "RAY_JOB_STOP_WAIT_TIME_S": "90",
    }  # fmt: skip
    assert made.results == "/shared/night"
    assert all(isinstance(value, str) for value in made.metadata(1).values())
    assert Request.of_job("solon-night-1", made.metadata(1)) == made
    assert check_paths(paths, measure(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": ""}, "got no folder for run directories"),
        ({"runs": "runs"}, "expected an absolute path"),
        ({"name": "two words"}, "choose another name"),
        ({"variables": ["WANDB_API_KEY=1"]}, "--require-env WANDB_API_KEY"),
        ({"variables": ["MODE"]}, "expected NAME=VALUE"),
        ({"variables": ["SOLON_RUNS=/x"]}, "is set by other options"),
        ({"required": ["a b"]}, "expected the name of an environment variable"),
        ({"overrides": ["run.note=https://me:pass@there"]}, "run.note"),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(tmp_path: Path, changes: dict[str, Any], words: str):
    path = make_run(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=words):
        request(tmp_path, path, **changes)


def test_a_run_file_outside_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "files").mkdir()
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="lies outside the folder"):
        request(tmp_path / "mine", make_run(tmp_path / "files", SETTINGS))


def test_a_named_file_that_is_excluded_is_refused_and_one_elsewhere_is_told(tmp_path: Path):
    path = make_run(tmp_path, SETTINGS)
    _, paths = request(tmp_path, path)
    (tmp_path / ".rayignore").write_text("*.yaml\n")
    with pytest.raises(InputError, match=r"is not uploaded: \.rayignore or \.gitignore excludes it"):
        check_paths(paths, measure(tmp_path))
    (note,) = check_paths(["/models/policy", "org/judge"], measure(tmp_path))
    assert note.endswith("on every node: /models/policy")


def test_size_is_measured_as_ray_packs_and_the_largest_paths_are_named(tmp_path: Path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "big.bin").write_bytes(b"0" * 3000)
    (tmp_path / "small.txt").write_bytes(b"0" * 100)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "old").write_bytes(b"0" * 10_000)
    (tmp_path / ".gitignore").write_text("/runs/\n")
    package = measure(tmp_path)
    assert package.nbytes == 3107
    assert package.largest()[0] == ("data/deep/big.bin", 3000)
    with pytest.raises(InputError, match=r"largest: data/deep/big\.bin"):
        check_package(package, limit=3107)
    (warning,) = check_package(package, limit=6000)
    assert ".rayignore excludes paths" in warning
    assert check_package(package) == []


def test_secrets_and_packages_of_solons_in_the_folder_are_noticed(tmp_path: Path):
    (tmp_path / ".env").write_text("KEY=1")
    (warning,) = check_package(measure(tmp_path))
    assert ".env would be readable on the cluster" in warning
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("")
    with pytest.raises(InputError, match="holds `actors`, which would take the place"):
        check_package(measure(tmp_path))


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://u:p@head:8265", "http://", "http://head:8265/x", "a b:x"]
)
def test_an_address_of_another_kind_is_refused(address: str):
    with pytest.raises(InputError, match="expected the address of the cluster's dashboard"):
        job_address(address)
    assert job_address("head:8265") == "http://head:8265"


def test_versions_that_differ_by_more_than_a_patch_are_refused():
    import platform

    import ray

    here = platform.python_version()
    assert check_versions(Versions(ray=ray.__version__, python=here)) == []
    assert check_versions(Versions(ray=ray.__version__, python="")) == []
    with pytest.raises(InputError, match=r"the cluster has Python 3\.9\.1"):
        check_versions(Versions(ray=ray.__version__, python="3.9.1"))
    with pytest.raises(InputError, match=r"the cluster has Ray 1\.0\.0"):
        check_versions(Versions(ray="1.0.0", python=here))


def test_the_driver_avoids_spot_machines():
    spot, plain = {"ray.io/market-type": "spot"}, {"ray.io/market-type": "on-demand"}
    assert labels_for_driver([Node(labels=spot, is_head=True)]) == {"ray.io/market-type": "!spot"}
    assert labels_for_driver([Node(labels=plain, is_head=True), Node(labels=spot, is_head=False)]) == {}
    assert labels_for_driver([]) == {}


def job(status: str, **more: Any) -> SimpleNamespace:
    given = {"driver_exit_code": None, "message": None, "error_type": None, "submission_id": None}
    return SimpleNamespace(status=JobStatus(status), **given | more)


def test_attempts_are_counted_and_a_second_job_of_a_run_is_refused():
    old = [job("FAILED", submission_id="solon-a-1"), job("STOPPED", submission_id="solon-a-10"),
           job("RUNNING", submission_id="solon-a-b-3")]  # fmt: skip
    assert next_attempt("a", old) == 11
    assert next_attempt("new", old) == 1
    with pytest.raises(InputError, match="the run a-b has the job solon-a-b-3, which is running"):
        next_attempt("a-b", old)


@pytest.mark.parametrize(
    ("info", "code", "words"),
    [
        (job("SUCCEEDED"), 0, "succeeded"),
        (job("STOPPED"), 0, "was stopped"),
        (job("FAILED", driver_exit_code=2), 2, "exit code 2"),
        (job("FAILED", driver_exit_code=1), 1, "exit code 1"),
        (job("FAILED", driver_exit_code=137), 1, "killed by signal 9"),
        (job("FAILED", driver_exit_code=-9), 1, "killed by signal 9"),
        (
            job("FAILED", message="Job supervisor actor failed to start within 900 seconds."),
            1,
            "no machine for its driver",
        ),
        (
            job("FAILED", message="The actor died: its node was lost"),
            1,
            "the machine or the process of its driver was lost",
        ),
    ],
)
def test_every_end_of_a_job_has_words_and_an_exit_code(info: Any, code: int, words: str):
    ended = Ended.of("solon-a-1", info)
    assert ended.code == code
    assert words in ended.said


class Server:
    """Answers from lists; `None` in a tail is a lost connection."""

    def __init__(self, answers: Sequence[Any], tails: Sequence[Sequence[str | None]], log: str = "") -> None:
        self.answers, self.tails, self._log = list(answers), list(tails), log

    def job(self, name: str) -> Any:
        answer = self.answers.pop(0)
        if answer == "silent":
            raise UnreachableError("the job server does not answer")
        return answer

    def log(self, name: str) -> str:
        return self._log

    async def tail(self, name: str) -> Any:
        for text in self.tails.pop(0):
            if text is None:
                raise UnreachableError("the job server does not answer")
            yield text


async def followed(server: Server, *, silent_s: float = 100.0) -> tuple[Any, list[str]]:
    written: list[str] = []
    now = iter(range(0, 10_000, 10))
    follower = Follower(server, "solon-a-1", write=written.append, say=lambda text: None, clock=lambda: next(now),
                        pause_s=0.0, silent_s=silent_s)  # fmt: skip
    try:
        return await follower.run(), written
    except (InputError, RunFailedError) as error:
        return error, written


async def test_a_log_whose_tail_is_cut_is_shown_once_and_without_control_characters():
    log = "one\ntwo\x1b[2J\nbearer abcdefghijkl\nlast"
    running = job("RUNNING")
    server = Server(
        [running, running, "silent", running, job("SUCCEEDED")],
        [["one\nt", None], [log[:5], log[5:9]], [log[:12]]],
        log,
    )
    ended, written = await followed(server)
    assert ended.code == 0
    assert written == ["one", r"two\x1b[2J", "bearer ***", "last"]


async def test_a_job_that_vanishes_and_one_that_never_was_are_told_apart():
    ended, _ = await followed(Server([job("RUNNING"), None], [[]]))
    assert isinstance(ended, RunFailedError)
    assert "has vanished" in str(ended)
    ended, _ = await followed(Server([None], []))
    assert isinstance(ended, InputError)


async def test_a_cluster_that_stays_silent_ends_the_following_not_the_job():
    ended, _ = await followed(Server([job("RUNNING"), *["silent"] * 50], [[]]))
    assert isinstance(ended, RunFailedError)
    assert str(ended).endswith("solon-a-1 may still run")


def test_a_job_of_another_program_is_not_resumed():
    with pytest.raises(InputError, match="was not submitted by `solon submit`"):
        Request.of_job("raysubmit_1", {"solon_arguments": json.dumps([])})
