"""Saving a running run: room for a checkpoint is reserved in advance, and the effects of a full disk."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from actors.learner import LearnerShell
from cluster.config.run_file import RunFile
from cluster.preflight.space import checkpoint_bytes, free_at, remarks_on_space
from cluster.saving import Saver
from solon.checkpoints.folder import CheckpointFolder, read_checkpoint
from solon.errors import EngineFailedError, WorkerLostError
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.models.facts import read_facts
from solon.runs import directory as run_directory
from solon.runs.directory import DiskFullError, RunDirectory, UnwritableError
from solon.telemetry.recorder import Recorder
from solon.telemetry.totals import RunTotals
from tests.unit.run_files import make_run

KIB = 1024
BALLAST = 64 * KIB


@pytest.fixture(autouse=True)
def _small_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "BALLAST_BYTES", BALLAST)
    monkeypatch.setattr("solon.checkpoints.room.MARGIN_BYTES", 16 * KIB)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


class Weights:
    """A learner whose state has this many bytes."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.saved_in: list[str] = []
        self.staged: list[bool] = []
        self.version = self.written_as = self.dies = 0
        self.may_write = asyncio.Event()
        self.may_write.set()

    async def stage(self, *, copies: bool) -> None:
        self.staged.append(copies)
        self.written_as = self.version

    async def write(self, directory: str) -> None:
        await self.may_write.wait()
        if self.dies:
            self.dies -= 1
            raise WorkerLostError("learner died")
        (Path(directory) / "learner.json").write_text(f'{{"version": {self.written_as}}}')
        (Path(directory) / "policy").mkdir()
        (Path(directory) / "policy" / "model.safetensors").write_bytes(os.urandom(self.nbytes))

    def saved(self, checkpoint: str) -> None:
        self.saved_in.append(Path(checkpoint).name)


class Night:
    """A run directory, its recorder, and a learner."""

    def __init__(self, root: Path, *, nbytes: int, keep: int = 3, is_async: bool = False) -> None:
        self.directory = RunDirectory.create(root, "night", default="run")
        self.folder = CheckpointFolder(self.directory.path / "checkpoints", keep=keep)
        self.learner = Weights(nbytes)
        totals = RunTotals(staleness_bound=4, total_steps=9)
        self.failures: list[Exception] = []
        self.recorder = Recorder(
            self.directory,
            totals,
            open_payload=lambda payload_ref: payload_ref,
            provenance={},
            on_failure=self.failures.append,
        )
        self.events: list[str] = []
        record = self.recorder.event

        def event(name: str, **fields: Any) -> None:
            self.events.append(name)
            record(name, **fields)

        self.recorder.event = event  # type: ignore[method-assign]
        ledger = AsyncLedger(LedgerConfig(batch_groups=2), StalenessConfig())

        async def state() -> dict[str, Any]:
            return {"version": self.learner.version, "list": self.numbers}

        self.numbers: list[int] = []
        self.saver = Saver(
            self.folder, directory=self.directory, learner=self.learner, ledger=ledger,  # type: ignore[arg-type]
            recorder=self.recorder, config_hash="", url="", state=state, resume="solon train r.toml --resume",
            is_async=is_async,
        )  # fmt: skip

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.directory.path).free

    def fill(self, *, leave: int) -> None:
        """Another process takes the disk, but for so much."""
        self.recorder.sync()  # nothing else is written meanwhile
        with (self.directory.path.parent / "other").open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), self.free - leave)


async def test_room_for_the_next_checkpoint_is_held_as_soon_as_its_size_is_known(disk: Path):
    night = Night(disk, nbytes=200 * KIB)
    assert night.directory.ballast.nbytes == BALLAST
    await night.saver.save(1)
    assert night.directory.ballast.nbytes > BALLAST + 200 * KIB
    night.fill(leave=4 * KIB)  # nothing that others write now can take its place
    await night.saver.save(2)
    assert night.folder.steps() == [1, 2]
    assert "space_freed" not in night.events
    assert night.events.count("space_short") == 1  # the one after that has none
    night.directory.close()


async def test_a_disk_that_is_too_small_for_all_checkpoints_keeps_the_last_and_says_so(disk: Path):
    night = Night(disk, nbytes=200 * KIB, keep=5)
    for step in range(1, 7):
        await night.saver.save(step)
    # Four fit beside the ballast: the oldest went, one by one.
    assert night.folder.steps() == [3, 4, 5, 6]
    assert night.events.count("space_short") == 1
    assert night.events.count("space_freed") == 2
    read_checkpoint(night.folder.path / "step-000006")
    night.directory.close()


async def test_a_checkpoint_that_does_not_fit_keeps_the_previous_one_and_states_the_missing_space(disk: Path):
    night = Night(disk, nbytes=200 * KIB)
    await night.saver.save(1)
    night.learner.nbytes = 900 * KIB
    with pytest.raises(DiskFullError) as caught:
        await night.saver.save(2)
    text = str(caught.value)
    assert "a checkpoint needs more than" in text
    assert "MiB are free; the one of step 1 is whole; free at least" in text
    assert text.endswith("then: solon train r.toml --resume")
    assert night.folder.steps() == [1]
    assert [path.name for path in night.folder.path.glob(".step-*")] == []  # its space is free again
    assert night.learner.saved_in == ["step-000001"]
    night.directory.write_json("summary.json", {"status": "failed"})  # there is room to say so
    night.directory.close()


async def test_when_a_run_stops_because_its_disk_is_full_its_last_checkpoint_finds_room(disk: Path):
    night = Night(disk, nbytes=200 * KIB)
    await night.saver.save(1)
    night.fill(leave=0)
    for number in range(10):
        night.recorder.event("stalled", still_s=number, waits=["x" * 3000])
    night.recorder.sync()
    await night.saver.save(2, is_last=True)
    assert [type(failure) for failure in night.failures] == [DiskFullError]
    assert "everything generated so far was written" in str(night.failures[0])
    assert night.folder.steps()[-1] == 2
    with pytest.raises(DiskFullError):
        night.recorder.close()


async def test_a_checkpoint_that_took_the_last_space_ends_an_unfinished_run(disk: Path):
    night = Night(disk, nbytes=200 * KIB)
    await night.saver.save(1)
    night.fill(leave=0)
    night.directory.ballast.give_up()
    night.fill(leave=256 * KIB)
    with pytest.raises(DiskFullError, match="the checkpoint of step 2 took the last space, and the run was stopped"):
        await night.saver.save(2)
    assert night.folder.steps()[-1] == 2
    night.directory.close()


async def test_a_first_checkpoint_that_does_not_fit_says_that_there_is_none(disk: Path):
    night = Night(disk, nbytes=1100 * KIB)
    with pytest.raises(DiskFullError, match="there is none before it; free at least"):
        await night.saver.save(1)
    night.directory.close()


async def test_a_part_of_a_checkpoint_that_does_not_fit_names_its_rank(tmp_path: Path):
    night = Night(tmp_path, nbytes=10)

    async def write(directory: str) -> None:
        raise DiskFullError(f"a part does not fit: {os.strerror(errno.ENOSPC)}", who="rank 1 of 2")

    night.learner.write = write  # type: ignore[method-assign]
    with pytest.raises(DiskFullError, match=r"is full for rank 1 of 2: a checkpoint needs .* there is none before it"):
        await night.saver.save(1)
    assert night.folder.steps() == []
    night.directory.close()


async def test_an_unwritable_disk_gives_one_message_and_no_checkpoint_is_removed_for_it(tmp_path: Path):
    night = Night(tmp_path, nbytes=10)
    await night.saver.save(1)

    async def broken(directory: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    night.learner.write = broken  # type: ignore[method-assign]
    with pytest.raises(UnwritableError, match="a checkpoint cannot be written: Input/output error; make the disk"):
        await night.saver.save(2)
    assert night.folder.steps() == [1]
    assert night.directory.ballast.nbytes > 0
    night.directory.close()


async def test_a_step_while_a_checkpoint_is_written_is_not_in_it(tmp_path: Path):
    night = Night(tmp_path, nbytes=10, is_async=True)
    night.learner.version, night.numbers[:] = 1, [1]
    night.learner.may_write.clear()
    async with night.saver as saver:
        await saver.save(1)
        night.learner.version, _ = 2, night.numbers.append(2)
        assert night.folder.steps() == night.learner.saved_in == []
        assert saver.saved_at is None
        night.learner.may_write.set()
    found = read_checkpoint(night.folder.path / "step-000001")
    assert found.run == {"version": 1, "list": [1]}
    assert json.loads((found.path / "learner.json").read_text()) == {"version": 1}
    assert night.learner.saved_in == ["step-000001"]
    assert night.learner.staged == [True]
    night.directory.close()


async def test_the_next_checkpoint_waits_for_the_one_that_is_written(tmp_path: Path):
    night = Night(tmp_path, nbytes=10, is_async=True)
    night.learner.may_write.clear()
    async with night.saver as saver:
        await saver.save(1)
        second = asyncio.ensure_future(saver.save(2))
        await asyncio.sleep(0.05)
        assert len(night.learner.staged) == 1
        assert not second.done()
        night.learner.may_write.set()
        await second
    assert night.folder.steps() == [1, 2]
    night.directory.close()


async def test_a_checkpoint_whose_learner_is_lost_is_abandoned_and_the_previous_one_stays(tmp_path: Path):
    night = Night(tmp_path, nbytes=10, is_async=True)
    async with night.saver as saver:
        await saver.save(1)
        await saver.settled()
        night.learner.dies = 1
        await saver.save(2)
        await saver.settled()
        assert saver.saved_at == 1
        assert [path.name for path in night.folder.path.iterdir() if "step" in path.name] == ["step-000001"]
        assert night.learner.saved_in == ["step-000001"]
        assert night.events[-1] == "checkpoint_abandoned"
        night.learner.dies = 2
        await saver.save(3, is_last=True)  # nothing is trained after it: it is taken again
        assert saver.saved_at == 3
    assert night.learner.staged[2:] == [False, False, False]
    night.directory.close()


async def test_an_error_of_writing_is_raised_after_the_next_step(tmp_path: Path):
    night = Night(tmp_path, nbytes=10, is_async=True)

    async def broken(directory: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    night.learner.write = broken  # type: ignore[method-assign]
    async with night.saver as saver:
        await saver.save(1)
        saver.require_sound()  # it is still being written
        await asyncio.sleep(0.1)
        with pytest.raises(UnwritableError, match="a checkpoint cannot be written: Input/output error"):
            saver.require_sound()
        saver.require_sound()
    night.directory.close()


@pytest.mark.parametrize(
    ("end", "steps"), [(None, [1]), (RuntimeError("a stage failed"), [1]), (asyncio.CancelledError(), [])]
)
async def test_the_end_of_a_run_completes_a_checkpoint_unless_it_is_cancelled(
    tmp_path: Path, end: BaseException | None, steps: list[int]
):
    night = Night(tmp_path, nbytes=10, is_async=True)
    night.learner.may_write.clear()
    asyncio.get_running_loop().call_later(0.05, night.learner.may_write.set)
    with pytest.raises(type(end)) if end else nullcontext():
        async with night.saver as saver:
            await saver.save(1)
            await asyncio.sleep(0)
            if end:
                raise end
    assert night.folder.steps() == steps
    assert not list(night.folder.path.glob(".step-*"))
    night.directory.close()


async def test_a_disk_that_is_full_while_steps_run_is_reported(disk: Path):
    night = Night(disk, nbytes=200 * KIB, is_async=True)
    async with night.saver as saver:
        await saver.save(1)
        await saver.settled()
        night.learner.nbytes = 900 * KIB
        await saver.save(2)
        with pytest.raises(DiskFullError, match="a checkpoint needs more than"):
            await saver.settled()
    assert night.folder.steps() == [1]
    night.directory.close()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (
            RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed: No space left on device"),
            DiskFullError,
        ),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), DiskFullError),
        (DiskFullError("the part of rank 1 of 2 does not fit", who="rank 1 of 2"), DiskFullError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), EngineFailedError),
    ],
)
def test_a_learner_that_finds_the_disk_full_is_not_replaced(error: Exception, raised: type[Exception]):
    class Broken:
        def write(self, directory: str) -> None:
            raise error

    shell = LearnerShell.__new__(LearnerShell)
    shell._learner = Broken()  # type: ignore[assignment]
    with pytest.raises(raised):
        shell.write("/runs/night")


def test_a_disk_too_small_for_the_kept_checkpoints_is_reported_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = RunFile.load(make_run(tmp_path, "checkpoint_keep = 2"))
    facts = read_facts(Path(run.policy))
    parameters = sum(math.prod(tensor.shape) for tensor in facts.tensors.values())
    # float32 on a CPU: the policy as it is served; parameters and two moments of policy and critic.
    size = checkpoint_bytes(run, facts)
    assert size == parameters * (4 + 12 + 12)
    monkeypatch.setattr("cluster.preflight.space.free_at", lambda root: 3 * size)
    assert remarks_on_space(run, tmp_path) == []
    monkeypatch.setattr("cluster.preflight.space.free_at", lambda root: 3 * size - 1)
    (text,) = remarks_on_space(run, tmp_path)
    assert "so the 2 that stay (checkpoint_keep = 2) and the one being written take" in text
    assert remarks_on_space(run, tmp_path, there=size) == []
    assert remarks_on_space(run.model_copy(update={"policy": "somebody/on-the-hub"}), tmp_path) == []


def test_free_space_is_that_of_the_folder_that_will_be_made(tmp_path: Path):
    assert free_at(tmp_path / "runs" / "not yet") == free_at(tmp_path) != 0


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ("", [1, 10, 20]),
        ("checkpoint_first = 0", [10, 20]),
        ("checkpoint_first = 3", [3, 10, 20]),
        ("checkpoint_every = 0", []),
        ("checkpoint_every = 8", [1, 8, 16, 24]),
    ],
)
def test_the_first_checkpoint_comes_after_the_first_step(tmp_path: Path, settings: str, saved: list[int]):
    run = RunFile.load(make_run(tmp_path, settings))
    assert [step for step in range(1, 25) if run.saves_after(step)] == saved
