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
from cluster.submission.paths import Named, check_paths
from cluster.submission.readable import check_readable
from cluster.submission.request import Request, make_request
from cluster.submission.submit import next_attempt, stop
from solon.cli import submit as commands
from solon.errors import InputError, RunFailedError
from tests.unit.doctor.test_doctor import end
from tests.unit.doctor.test_doctor import make_run as made_run
from tests.unit.run_files import make_run

SETTINGS = '[feedback]\ntask = "pointwise"\ntemplate = "compact"\n'


def request(folder: Path, path: Path, **changes: Any) -> tuple[Request, list[Named]]:
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
    _, paths = request(tmp_path, path, overrides=["policy=/models/policy", "judge=org/judge"])
    (tmp_path / ".rayignore").unlink()
    (note,) = check_paths(paths, measure(tmp_path))
    assert note.endswith("on every node: /models/policy")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("../big/llama", r"\.\./big/llama, which the file names, leaves the folder .*write it absolute"),
        ("HERE/policy", "is an absolute path into the folder .*write it relative to the run file"),
        ("missing", "missing, which the file names, does not exist"),
    ],
)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_path_that_would_mean_another_file_on_the_cluster_is_refused(
    tmp_path: Path, value: str, words: str, is_there: bool
):
    folder = tmp_path / "mine"
    folder.mkdir()
    path = make_run(folder, SETTINGS)
    if is_there:
        (tmp_path / "big" / "llama").mkdir(parents=True)
    value = value.replace("HERE", str(folder))
    path.write_text(path.read_text().replace('policy = "policy"', f'policy = "{value}"'))
    _, paths = request(folder, path)
    with pytest.raises(InputError, match=words):
        check_paths(paths, measure(folder))
    _, paths = request(folder, make_other(folder), overrides=[f"policy={value}"])
    with pytest.raises(InputError, match=words):
        check_paths(paths, measure(folder))


def readable(folder: Path, path: Path, **changes: Any) -> list[str]:
    overrides, required = changes.get("overrides", []), changes.get("required", [])
    _, paths = request(folder, path, overrides=overrides)
    return check_readable(path, paths, overrides=overrides, folder=folder, required=required)


def test_what_a_check_would_refuse_is_refused_before_it_is_submitted_where_the_models_are_here(tmp_path: Path):
    path = make_run(tmp_path, SETTINGS)
    config = tmp_path / "judge" / "config.json"
    readable(tmp_path, path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 256}))
    assert "a question needs" in " ".join(readable(tmp_path, path))
    with pytest.raises(InputError, match=r"judging\.max_model_len = 2048 exceeds the model's context of 256 tokens"):
        readable(tmp_path, path, overrides=["judging.max_model_len=2048"])
    for changes, words in (
        ({"overrides": ["policy=/models/policy"]}, "/models/policy: not on this machine"),
        ({"required": ["KEY_OF_A_JUDGE"]}, "KEY_OF_A_JUDGE: not set here"),
        ({"overrides": ["judge=nursery:judge"]}, "nursery:judge: made there"),
    ):
        (note,) = readable(tmp_path, path, **changes)
        assert note == f"models, lengths and prompts are checked on the cluster only: {words}"


def make_other(folder: Path) -> Path:
    """A run file in a folder below, whose own paths lead up and stay inside."""
    (folder / "runs.d").mkdir()
    path = folder / "runs.d" / "other.toml"
    names = {"policy": "../policy", "judge": "../judge", "prompts": "../prompts.jsonl"}
    lines = [f'{key} = "{value}"' for key, value in (names | {"constitution": "../constitution.yaml"}).items()]
    path.write_text("\n".join([*lines, SETTINGS]))
    return path


def test_paths_that_lead_up_and_stay_in_the_folder_and_links_to_models_elsewhere_are_uploaded(tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    make_run(folder, SETTINGS)
    (folder / "policy").rename(tmp_path / "elsewhere")
    (folder / "policy").symlink_to(tmp_path / "elsewhere")
    _, paths = request(folder, make_other(folder))
    assert {named.written for named in paths} >= {"../policy", "../judge"}
    assert check_paths(paths, measure(folder)) == []


def test_the_whole_machine_is_not_uploaded():
    with pytest.raises(InputError, match="all of this machine"):
        measure(Path("/"))


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


class Jobs:
    """A job server with one job, which is running when first looked at."""

    def __init__(self, *infos: SimpleNamespace) -> None:
        self.infos, self.url = list(infos), "http://head:8265"

    def job(self, name: str) -> SimpleNamespace:
        return self.infos.pop(0) if len(self.infos) > 1 else self.infos[0]

    def jobs(self) -> list[SimpleNamespace]:
        return self.infos

    def stop_job(self, name: str) -> None:
        """Nothing to do."""


def record(name: str, status: str, run: str = "", **more: Any) -> SimpleNamespace:
    times = {"start_time": 1_790_000_000_000, "end_time": None, "entrypoint": "python"}
    metadata = {"solon_run": run, "solon_runs": "/shared", "solon_stop_wait_s": "90"} if run else {}
    return job(status, submission_id=name, metadata=metadata, **times | more)


@pytest.mark.parametrize(("run", "words"), [("b", "write a checkpoint"), ("", "it is not a run of Solon's")])
def test_a_job_of_another_program_is_stopped_without_the_promise_of_a_checkpoint(run: str, words: str):
    said: list[str] = []
    stop(Jobs(record("j-1", "RUNNING", run), record("j-1", "STOPPED", run)), "j-1", wait=True, say=said.append)  # type: ignore[arg-type]
    assert words in said[0]
    assert any("checkpoint" in line for line in said) == bool(run)


def test_the_list_fits_a_narrow_terminal_and_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    server = Jobs(record("solon-night-1", "SUCCEEDED", "night", end_time=1_790_000_900_000), record("ray-1", "RUNNING"))
    monkeypatch.setattr("cluster.submission.connection.connect", lambda address: server)
    monkeypatch.setenv("COLUMNS", "80")
    commands.run_list(address="", every=False, as_json=False)
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if "solon-night-1" in line]
    assert row.count("2026-09-") == 2
    assert "not shown: 1 jobs that `solon submit` did not submit; --all shows them" in said


def test_the_status_of_a_job_says_the_step_where_its_files_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = end(made_run(tmp_path), "stopped")
    info = record("solon-night-1", "STOPPED", "night", end_time=1_790_000_900_000)
    info.metadata["solon_runs"] = str(folder.parent)
    monkeypatch.setattr("cluster.submission.connection.connect", lambda address: Jobs(info))
    commands.run_status("solon-night-1", address="", as_json=False)
    said = capsys.readouterr().out
    assert "exit code" not in said
    assert "end        stopped on request\n" in said
    assert "state      stopped\n" in said
    assert "step       3 of 9\n" in said


@pytest.mark.parametrize(
    ("code", "then"), [(2, "correct the file, and submit it again"), (1, "it continues with: solon jobs resume j-1")]
)
def test_the_next_step_after_a_failed_job_depends_on_how_it_failed(code: int, then: str):
    server: Any = Server([job("FAILED", driver_exit_code=code)], [])
    with pytest.raises((InputError, RunFailedError)) as failed:
        commands._follow(server, "j-1", say=lambda text: None, as_json=False)
    assert then in failed.value.__notes__[0]
