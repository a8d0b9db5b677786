"""Where a run begins, and how one that stands still is described and ended."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cluster.train
from cluster.config.input_digests import input_digests
from cluster.config.run_file import RunFile
from cluster.session import RunSession
from cluster.start import Start, find_start
from cluster.train import put_back, require_place
from cluster.watchdog import Watchdog
from learners.config import LoraConfig
from solon.checkpoints.folder import CheckpointFolder
from solon.checkpoints.remote import upload
from solon.cli.view import SilentView
from solon.doctor.files import is_locked
from solon.doctor.status import RunStatus, is_stuck
from solon.errors import InputError, RunFailedError
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.models.digest import file_digest
from solon.records import Prompt
from solon.recovery.guard import RecoveryConfig
from solon.runs.directory import RunDirectory
from tests.unit.checkpoints.test_checkpoints import write
from tests.unit.fakes import make_prompt
from tests.unit.run_files import CONFIG, make_run, tensors_of, write_weights

HASH = "constitution"


@pytest.fixture
def run(tmp_path: Path) -> RunFile:
    return RunFile.load(make_run(tmp_path))


def begun(root: Path, run: RunFile, *, name: str = "night", steps: tuple[int, ...] = ()) -> RunDirectory:
    """A run directory as a killed process leaves it."""
    directory = RunDirectory.create(root, name, default="run")
    directory.write_json("config.json", {"constitution_hash": HASH} | run.model_dump(mode="json"))
    for step in steps:
        write(CheckpointFolder(directory.path / "checkpoints"), step)
    directory.close()
    return directory


def start_of(root: Path, run: RunFile, *, name: str | None = "night", constitution: str = HASH) -> Start:
    return find_start(run, constitution, root=root, name=name, default="run", resume=True)


def test_without_resume_a_new_run_begins(tmp_path: Path, run: RunFile):
    begun(tmp_path / "runs", run, steps=(2,))
    start = find_start(run, HASH, root=tmp_path / "runs", name="night", default="run", resume=False)
    assert (start.directory, start.step) == (None, 0)


def test_a_resumed_run_continues_at_its_last_checkpoint_or_at_the_beginning_without_one(tmp_path: Path, run: RunFile):
    root = tmp_path / "runs"
    assert start_of(root, run).directory is None
    begun(root, run)
    assert (start_of(root, run).directory, start_of(root, run).step) == (root / "night", 0)
    write(CheckpointFolder(root / "night" / "checkpoints"), 4)
    write(CheckpointFolder(root / "night" / "checkpoints"), 8)
    assert start_of(root, run).step == 8


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path: Path, run: RunFile):
    directory = begun(tmp_path / "runs", run, steps=(4, 8))
    (directory.path / "checkpoints" / "step-000008" / "ledger.json").write_text("{}")
    start = start_of(tmp_path / "runs", run)
    assert start.step == 4
    assert "ledger.json is damaged" in start.damaged[0]


def test_without_a_name_the_youngest_run_of_the_file_is_meant(tmp_path: Path, run: RunFile):
    root = tmp_path / "runs"
    for index, name in enumerate(("run-1", "run-2", "other-3")):
        path = begun(root, run, name=name).path / "config.json"
        os.utime(path, (index, index))
    assert start_of(root, run, name=None).directory == root / "run-2"


def test_a_complete_run_has_nothing_left_to_do_unless_more_steps_are_asked_for(tmp_path: Path, run: RunFile):
    begun(tmp_path / "runs", run, steps=(100,))
    summary = tmp_path / "runs" / "night" / "summary.json"
    summary.write_text(json.dumps({"status": "completed", "steps": 100}))
    assert start_of(tmp_path / "runs", run).finished == {"status": "completed", "steps": 100}
    longer = run.model_copy(update={"steps": 150})
    assert start_of(tmp_path / "runs", longer).finished is None
    assert start_of(tmp_path / "runs", longer).step == 100
    shorter = run.model_copy(update={"steps": 50})
    summary.unlink()
    with pytest.raises(InputError, match="has trained 100 steps already"):
        start_of(tmp_path / "runs", shorter)


def test_another_configuration_or_constitution_is_refused_by_name(tmp_path: Path, run: RunFile):
    begun(tmp_path / "runs", run, steps=(2,))
    other = run.model_copy(update={"seed": 3, "learn": run.learn.model_copy(update={"learning_rate": 1.0})})
    with pytest.raises(InputError, match=r"seed was 0, is 3; learn\.learning_rate was .*, is 1\.0; set them back"):
        start_of(tmp_path / "runs", other)
    with pytest.raises(InputError, match="the constitution is not the one of"):
        start_of(tmp_path / "runs", run, constitution="another")


def test_naming_the_objective_that_was_in_use_is_no_change(tmp_path: Path, run: RunFile):
    named = run.model_copy(update={"learn": run.learn.model_copy(update={"objective": "ppo"})})
    for name, before, now in (("unnamed", run, named), ("named", named, run)):
        begun(tmp_path / "runs", before, name=name, steps=(2,))
        assert start_of(tmp_path / "runs", now, name=name).step == 2
    other = run.model_copy(update={"learn": run.learn.model_copy(update={"objective": "group_relative"})})
    with pytest.raises(InputError, match=r"learn\.objective was .*, is 'group_relative'"):
        start_of(tmp_path / "runs", other, name="named")


def test_adapters_that_come_or_go_are_another_run(tmp_path: Path, run: RunFile):
    adapted = run.model_copy(update={"learn": run.learn.model_copy(update={"lora": LoraConfig(r=4)})})
    begun(tmp_path / "runs", run, steps=(2,))
    with pytest.raises(InputError, match=r"learn\.lora\.r was not set, is 4"):
        start_of(tmp_path / "runs", adapted)
    begun(tmp_path / "runs", adapted, name="adapted", steps=(2,))
    with pytest.raises(InputError, match=r"learn\.lora\.r was 4, is not set"):
        start_of(tmp_path / "runs", run, name="adapted")
    assert start_of(tmp_path / "runs", adapted, name="adapted").step == 2


def test_a_key_that_an_older_version_did_not_have_stands_for_its_default(tmp_path: Path, run: RunFile):
    directory = begun(tmp_path / "runs", run, steps=(2,)).path
    config = json.loads((directory / "config.json").read_text())
    del config["learn"]["entropy_bonus"], config["watch"]
    (directory / "config.json").write_text(json.dumps(config))
    assert start_of(tmp_path / "runs", run).step == 2
    other = run.model_copy(update={"learn": run.learn.model_copy(update={"entropy_bonus": 0.5})})
    with pytest.raises(InputError, match=r"learn\.entropy_bonus was 0\.0, is 0\.5"):
        start_of(tmp_path / "runs", other)


def test_the_record_of_a_version_with_other_keys_is_compared_where_both_say_something(tmp_path: Path, run: RunFile):
    directory = begun(tmp_path / "runs", run, steps=(2,)).path
    config = json.loads((directory / "config.json").read_text())
    config["learn"]["momentum_of_old"] = 1
    del config["learn"]["entropy_bonus"]
    (directory / "config.json").write_text(json.dumps(config))
    assert start_of(tmp_path / "runs", run).step == 2
    other = run.model_copy(update={"learn": run.learn.model_copy(update={"gamma": 0.5})})
    with pytest.raises(InputError, match=r"learn\.gamma was 1\.0, is 0\.5"):
        start_of(tmp_path / "runs", other)


def test_files_changed_by_a_refused_attempt_are_restored(tmp_path: Path):
    (tmp_path / "config.json").write_text("old")
    put_back(tmp_path / "config.json", b"older")
    put_back(tmp_path / "summary.json", None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "older"


DIGESTS = {"prompts": "9 prompts, aa", "policy": "p1", "judge": "j1"}


def test_other_prompts_or_weights_under_the_same_name_are_refused_and_named(tmp_path: Path, run: RunFile):
    def resumed(**other: str) -> Start:
        changed = DIGESTS | other
        return find_start(run, HASH, digests=changed, root=tmp_path, name="night", default="run", resume=True)

    directory = begun(tmp_path, run, steps=(2,))
    directory.write_json("config.json", json.loads((directory.path / "config.json").read_text()) | {"inputs": DIGESTS})
    assert resumed().step == 2
    with pytest.raises(
        InputError, match=r"other inputs .*prompts .*prompts.jsonl was 9 prompts, aa, is 8 prompts, bb;"
    ):
        resumed(prompts="8 prompts, bb")
    with pytest.raises(InputError, match=r"policy .*policy has other weights.*; judge .*judge has other weights"):
        resumed(policy="p2", judge="j2")
    # A digest that was unknown then, such as that of a hub name's files, is not compared.
    assert resumed(**{"watch.audit_judge": "w1"}).step == 2


def moved_to(folder: Path) -> RunFile:
    """The same run, with all of its inputs and a calibration in another folder."""
    folder.mkdir(parents=True)
    return RunFile.load(make_run(folder, '[feedback]\ncalibration = "calibration.json"\n'))


def test_a_submitted_folder_that_ray_unpacks_elsewhere_is_the_same_run_while_its_content_is_the_same(tmp_path: Path):
    root = tmp_path / "runs"
    copies = tmp_path / "session" / "runtime_resources" / "working_dir_files"
    before, now = moved_to(copies / "_ray_pkg_1"), moved_to(copies / "_ray_pkg_2")
    directory = begun(root, before, steps=(2,))
    config = json.loads((directory.path / "config.json").read_text())
    directory.write_json("config.json", config | {"inputs": input_digests(before, [], [])})

    def resumed(run: RunFile) -> Start:
        digests = input_digests(run, [], [])
        return find_start(run, HASH, digests=digests, root=root, name="night", default="run", resume=True)

    assert before.policy != now.policy
    assert resumed(now).step == 2
    write_weights(Path(now.policy) / "model.safetensors", tensors_of(CONFIG), mark="other")
    with pytest.raises(InputError, match=r"policy .*_ray_pkg_2/policy has other weights"):
        resumed(now)
    with pytest.raises(InputError, match=r"judge was .*_ray_pkg_1/judge', is .*_ray_pkg_1/policy'"):
        resumed(before.model_copy(update={"judge": before.policy}))


def test_a_model_that_was_moved_is_the_same_input_and_a_path_without_a_digest_is_not(tmp_path: Path):
    root, before, now = tmp_path / "runs", moved_to(tmp_path / "old"), moved_to(tmp_path / "new")
    directory = begun(root, before, steps=(2,))
    config = json.loads((directory.path / "config.json").read_text())
    digests = dict.fromkeys(("policy", "judge", "prompts"), "d1")
    directory.write_json("config.json", config | {"inputs": digests})
    with pytest.raises(InputError) as refused:
        find_start(now, HASH, digests=digests, root=root, name="night", default="run", resume=True)
    assert "feedback.calibration was" in str(refused.value)
    assert "policy was" not in str(refused.value)


def test_a_checkpoint_keeps_its_input_digests_when_the_configuration_is_rewritten(tmp_path: Path, run: RunFile):
    directory = begun(tmp_path, run)
    write(CheckpointFolder(directory.path / "checkpoints"), 2, run={"inputs": DIGESTS})
    with pytest.raises(InputError, match=r"step-000002 was begun with other inputs .*judge"):
        find_start(
            run, HASH, digests=DIGESTS | {"judge": "j2"}, root=tmp_path, name="night", default="run", resume=True
        )


def test_digests_show_other_prompts_weights_templates_and_endpoints(tmp_path: Path, run: RunFile):
    endpoint = tmp_path / "big.toml"
    endpoint.write_text('[endpoint]\nbase_url = "https://judge.example/v1"\nmodel = "big"\n')
    run = run.model_copy(update={"judge": str(endpoint)})
    prompts = [make_prompt("a"), make_prompt("b", "fact")]
    first = input_digests(run, prompts, ())
    assert set(first) == {"policy", "judge", "prompts"}
    assert input_digests(run, prompts, ()) == first

    def changed(prompts: list[Prompt] = prompts) -> set[str]:
        now = input_digests(run, prompts, ())
        return {key for key in first if now[key] != first[key]}

    assert changed(prompts[:1]) == changed(prompts[::-1]) == changed([prompts[0], make_prompt("b")]) == {"prompts"}
    endpoint.write_text(endpoint.read_text() + "usd_per_million_input = 3.0\n")
    assert changed() == set()
    endpoint.write_text(endpoint.read_text() + "seed = 3\n")
    assert changed() == {"judge"}
    for name, content in (("model.safetensors", b"other"), ("chat_template.jinja", b"{{ messages }}!")):
        kept = (tmp_path / "policy" / name).read_bytes() if (tmp_path / "policy" / name).exists() else None
        (tmp_path / "policy" / name).write_bytes(content)
        assert changed() == {"policy", "judge"}
        (tmp_path / "policy" / name).write_bytes(kept) if kept is not None else (tmp_path / "policy" / name).unlink()
    assert changed() == {"judge"}
    assert "policy" not in input_digests(run.model_copy(update={"policy": "org/model"}), prompts, ())
    template = tmp_path / "mine.jinja"
    run = run.model_copy(update={"rollout": run.rollout.model_copy(update={"chat_template": str(template)})})
    digests = []
    for text in ("{{ messages }}", "{{ messages }} "):
        template.write_text(text)
        digests.append(input_digests(run, prompts, ()))
    assert {key for key in digests[0] if digests[0][key] != digests[1][key]} == {"rollout.chat_template"}


def test_only_names_sizes_and_samples_of_a_large_weight_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("solon.models.digest.WHOLE_BYTES", 10_000)
    file, header = tmp_path / "model.safetensors", b'{"a": {"shape": [2]}}'
    body = bytearray(2_000_000)

    def digest() -> bytes:
        file.write_bytes(len(header).to_bytes(8, "little") + header + body)
        return file_digest(file)

    first = digest()
    assert digest() == first
    body[:] = b"\1" * len(body)
    second = digest()
    body[-1] = 7
    third = digest()
    header = header.replace(b"a", b"b")
    assert len({first, second, third, digest()}) == 4


def test_settings_of_length_placement_and_patience_may_change(tmp_path: Path, run: RunFile):
    begun(tmp_path / "runs", run, steps=(2,))
    other = run.model_copy(
        update={
            "steps": 500,
            "checkpoint_every": 3,
            "recovery": RecoveryConfig(max_restarts=9),
            "rollout": run.rollout.model_copy(update={"num_actors": 4}),
        }
    )
    assert start_of(tmp_path / "runs", other).step == 2


@pytest.mark.parametrize("left", ["checkpoints", "metrics"])
def test_a_run_that_lost_its_config_is_not_begun_again_on_top_of_its_records(tmp_path: Path, run: RunFile, left: str):
    directory = begun(tmp_path / "runs", run, steps=(4,) if left == "checkpoints" else ()).path
    if left == "metrics":
        (directory / "metrics.jsonl").write_text("{}\n")
    (directory / "config.json").unlink()
    with pytest.raises(InputError, match=r"has records of a run but no config\.json.*put that file back"):
        start_of(tmp_path / "runs", run)


def test_a_run_that_is_still_running_is_not_resumed_by_another_process(tmp_path: Path, run: RunFile):
    begun(tmp_path / "runs", run, steps=(2,))
    first = start_of(tmp_path / "runs", run).open(tmp_path / "runs", "night", default="run")
    assert is_locked(first.path)
    with pytest.raises(InputError, match="is in use"):
        start_of(tmp_path / "runs", run).open(tmp_path / "runs", "night", default="run")
    first.close()
    assert not is_locked(first.path)


def test_resuming_a_live_run_is_refused_before_anything_is_fetched_or_removed(tmp_path: Path, run: RunFile):
    root, store = tmp_path / "runs", (tmp_path / "store").as_uri()
    directory = begun(root, run, steps=(2,))
    upload(write(CheckpointFolder(directory.path / "checkpoints"), 4), store)
    shutil.rmtree(directory.path / "checkpoints" / "step-000004")
    directory.lock()
    scratch = CheckpointFolder(directory.path / "checkpoints").begin(6)
    before = sorted(directory.path.rglob("*"))
    elsewhere = run.model_copy(update={"checkpoint_url": store})
    with pytest.raises(InputError, match="is in use: another process works in it"):
        start_of(root, elsewhere)
    assert sorted(directory.path.rglob("*")) == before
    directory.close()
    assert start_of(root, elsewhere).step == 4
    assert not scratch.exists()
    assert not is_locked(directory.path)


def test_a_damaged_newest_checkpoint_is_fetched_from_the_store(tmp_path: Path, run: RunFile):
    root, store = tmp_path / "runs", (tmp_path / "store").as_uri()
    directory = begun(root, run, steps=(4, 8))
    upload(directory.path / "checkpoints" / "step-000008", store)
    (directory.path / "checkpoints" / "step-000008" / "ledger.json").write_text("{}")
    start = start_of(root, run.model_copy(update={"checkpoint_url": store}))
    assert start.step == 8
    assert "ledger.json is damaged" in start.damaged[0]


class Driven:
    """A driver that writes given files, and records whether the run directory was locked."""

    refuses = False
    locked: bool | None = None
    has_begun = False

    def __init__(self, session: RunSession, stages: Any) -> None:
        self._directory = session.directory

    async def drive(self) -> dict[str, Any]:
        self._directory.ballast.give_up()
        path = self._directory.write_json("summary.json", {"status": "completed"})
        type(self).locked = is_locked(path.parent)
        if self.refuses:
            raise InputError("no such model")
        return {}


@pytest.mark.parametrize("refuses", [False, True])
def test_the_lock_is_held_until_the_last_file_of_a_run_is_written(
    tmp_path: Path, run: RunFile, monkeypatch: pytest.MonkeyPatch, refuses: bool
):
    @contextmanager
    def no_cluster() -> Iterator[Any]:
        yield SimpleNamespace(resources={"CPU": 99.0}, notes=())

    put_backs: list[bool | None] = []

    def watched_put_back(path: Path, content: bytes | None) -> None:
        put_backs.append(is_locked(path.parent))
        put_back(path, content)

    for name, value in (("Driver", Driven), ("cluster", no_cluster), ("put_back", watched_put_back)):
        monkeypatch.setattr(cluster.train, name, value)
    monkeypatch.setattr(cluster.train, "fit_run", lambda run, cpus: (run, ()))
    monkeypatch.setattr(cluster.train, "read_supply", lambda: None)
    monkeypatch.setattr(cluster.train, "check_cluster", lambda run, supply: None)
    monkeypatch.setattr(cluster.train, "check_machines", lambda run, root: [])
    monkeypatch.setattr(Driven, "refuses", refuses)
    given = {"name": "night", "default_name": "run", "root": tmp_path / "runs", "view": SilentView()}
    with suppress(InputError):
        cluster.train.train(run, **given)
    assert Driven.locked is True
    config = tmp_path / "runs" / "night" / "config.json"
    (config.parent / "summary.json").unlink()
    before = config.read_text()
    with suppress(InputError):
        cluster.train.train(run, **given, resume=True)
    assert put_backs == [True, True] * refuses
    assert (config.read_text() == before) == refuses
    assert is_locked(tmp_path / "runs" / "night") is False


def test_half_written_lines_of_a_killed_process_are_removed(tmp_path: Path, run: RunFile):
    path = begun(tmp_path / "runs", run).path
    (path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"ste')
    (path / "events.jsonl").write_text("{")
    (path / "rollouts").mkdir()
    (path / "rollouts" / "part-000001.parquet.tmp").write_text("half")
    (path / "rollouts" / ".part-000002.parquet.tmp").write_text("half")
    RunDirectory.reopen(path).close()
    assert (path / "metrics.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'
    assert (path / "events.jsonl").read_text() == ""
    assert list((path / "rollouts").iterdir()) == []


def test_credentials_in_the_address_of_the_store_are_refused_without_repeating_them(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        RunFile.load(make_run(tmp_path, 'checkpoint_url = "s3://me:s3cret@bucket/x"'))
    assert "`checkpoint_url` holds what looks like a secret" in str(caught.value)
    assert "s3cret" not in str(caught.value)


# -- standing still ---------------------------------------------------------------------------------------------------


def make_standing(**groups: int) -> RunStatus:
    return RunStatus(
        time=0.0, pid=1, host="here", still_s=70.0, groups=groups, batch_groups=8,
        out=({"ordinal": 12, "attempt": 1, "state": "judging", "holder": "judge-0", "seconds": 63.0},),
        workers=({"worker": "rollout-0", "state": "being replaced", "recovered": 2},),
    )  # fmt: skip


def test_a_run_in_which_a_worker_holds_a_group_is_slow_and_not_stuck():
    assert not is_stuck(make_standing())
    idle = make_standing().model_copy(update={"out": (), "workers": ()})
    assert is_stuck(idle)
    assert not is_stuck(idle.model_copy(update={"groups": {"leased": 8}}))


class Said:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, Any] = {}

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def write(self, name: str, value: Any) -> None:
        self.files[name] = value


def make_vigil(said: Said, *, stall_s: float = 0.05, draining: Any = lambda: None) -> tuple[Watchdog, list[str]]:
    stops: list[str] = []
    watchdog = Watchdog(
        RecoveryConfig(stall_s=stall_s),
        ledger=AsyncLedger(LedgerConfig(), StalenessConfig()),
        guards=list,
        recorder=said,  # type: ignore[arg-type]
        on_stop=stops.append,
        draining=draining,
    )
    return watchdog, stops


async def test_a_stuck_run_is_reported_and_ended_with_the_chain_of_waits():
    said = Said()
    watchdog, _ = make_vigil(said)

    async def stand_still() -> None:
        async with watchdog:
            await asyncio.Event().wait()

    with pytest.raises(RunFailedError, match=r"nothing has moved for .*learn waits for a batch: 0 of 16 .*--resume"):
        await asyncio.wait_for(asyncio.ensure_future(stand_still()), timeout=10)
    stalled = [fields for name, fields in said.events if name == "stalled"]
    assert len(stalled) == 3
    assert any("stand_still" in line for line in stalled[0]["tasks"])
    assert said.files["live.json"]["groups"]["admitted"] == 0


async def test_a_machine_about_to_be_removed_stops_the_run_once():
    said = Said()
    watchdog, stops = make_vigil(said, stall_s=60, draining=lambda: "the driver's node is drained")
    async with watchdog:
        while not stops:  # noqa: ASYNC110 - it asks by itself, now and then
            await asyncio.sleep(0.01)
    assert stops == ["the driver's node is drained"]
    assert said.events == [("draining", {"reason": "the driver's node is drained"})]


def test_checking_whether_a_run_directory_can_be_created_leaves_no_folder(tmp_path: Path):
    require_place(tmp_path / "deep" / "runs")
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    require_place(tmp_path / "runs")
    assert (tmp_path / "runs").is_dir()


def test_a_place_where_no_run_directory_can_be_created_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"no run directory can be made in .*set SOLON_RUNS"):
        require_place(tmp_path / "file" / "runs")
