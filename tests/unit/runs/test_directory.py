from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solon.runs.directory as module
from solon.errors import InputError
from solon.files.json_text import json_text
from solon.host.ballast import Ballast, is_no_space
from solon.records import Feedback, Label
from solon.runs.directory import DiskFullError, RunDirectory, UnwritableError
from solon.runs.tables import label_rows, rollout_rows
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_group


@pytest.fixture(autouse=True)
def _a_small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BALLAST_BYTES", 64 * 1024)


def make_directory(root: Path, name: str = "run") -> RunDirectory:
    return RunDirectory.create(root, name, default="run")


def strict(text: str) -> Any:
    """Parsed by a reader that knows no NaN."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def make_feedback(margin: float | None = 0.5, *, ordinal: int = 0) -> Feedback:
    status = Status.ABSTAIN if margin is None else Status.OK
    label = Label(task="pointwise", principle_id="kind", rollouts=(0,), verdict=Verdict(status=status, margin=margin))
    return Feedback(ordinal=ordinal, attempt=0, rewards_G=(margin,), labels=(label,))


# -- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "a/b", "../up", "/abs", ".", "..", ".hidden", "-x", "a b", "a\n", "a\0", "x" * 101]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match="--name got"):
        make_directory(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_taken_name_is_refused_when_asked_for_and_numbered_when_not(tmp_path: Path):
    make_directory(tmp_path, "demo")
    with pytest.raises(InputError, match=r"exists already; choose another --name"):
        make_directory(tmp_path, "demo")
    paths = {RunDirectory.create(tmp_path, None, default="demo").path for _ in range(3)}
    assert len(paths) == 3


@pytest.mark.parametrize("default", ["100%", "a%Yb", "", ".toml", "a b/c", "x" * 300, "..", "-rf"])
def test_any_run_file_name_makes_a_folder_name(tmp_path: Path, default: str):
    path = RunDirectory.create(tmp_path, None, default=default).path
    assert path.parent == tmp_path
    assert not path.name.startswith((".", "-"))
    assert path.name[-16] == "-"


def test_a_root_that_cannot_hold_folders_is_an_input_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make_directory(tmp_path / "file")


# -- writing ---------------------------------------------------------------------------------------------------


def test_files_are_whole_and_lines_are_added(tmp_path: Path):
    directory = make_directory(tmp_path)
    for step in range(3):
        directory.append("metrics.jsonl", {"step": step})
        directory.write_json("checkpoints/summary.json", {"steps": step})
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert json.loads((directory.path / "checkpoints/summary.json").read_text()) == {"steps": 2}
    directory.close()
    directory.close()
    assert sorted(p.name for p in directory.path.rglob("*") if p.is_file()) == ["metrics.jsonl", "summary.json"]


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.floats(width=32).map(np.float32)
    | st.integers(-9, 9).map(np.int64)
    | st.lists(st.floats(), max_size=2).map(np.array)
    | st.just(Path("x"))
    | st.just(Status.OK),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_json_is_always_valid_and_one_line(value: Any):
    text = json_text({"value": value})
    assert text.isascii()
    assert "\n" not in text
    strict(text)


def test_non_numbers_are_null_and_numpy_values_are_plain_values(tmp_path: Path):
    value = {"nan": math.nan, "deep": [{"inf": (-math.inf, 1.5)}], "np": np.float32(0.5), "array": np.arange(2)}
    directory = make_directory(tmp_path)
    directory.append("metrics.jsonl", value)
    found = strict((directory.path / "metrics.jsonl").read_text())
    assert found == {"nan": None, "deep": [{"inf": [None, 1.5]}], "np": 0.5, "array": [0, 1]}
    assert strict(directory.write_json("summary.json", value).read_text()) == found
    assert strict(json_text([np.float32(math.nan), np.array([math.inf, 1])])) == [None, [None, 1]]


def test_parts_of_a_table_read_together_with_any_nulls_or_empty_lists(tmp_path: Path):
    directory = make_directory(tmp_path)
    provenance = {"run_id": "r", "judge_id": "judge-0"}
    for margin in (None, 0.5, None):
        directory.write_rows("labels", label_rows(make_feedback(margin), provenance))
    full = rollout_rows(make_group(texts=("blue", "")))
    empty = [row | {"token_ids": [], "logprobs": [], "versions": [], "version_tokens": [], "tags": []} for row in full]
    tagged = [row | {"tags": ["fact"]} for row in full]
    for rows in (empty, full, tagged):
        directory.write_rows("rollouts", rows)
    labels, rollouts = (pq.read_table(directory.path / table) for table in ("labels", "rollouts"))
    assert labels["margin"].to_pylist() == [None, 0.5, None]
    assert labels["position_offset"].null_count == 3
    assert labels["judge_id"].to_pylist() == ["judge-0"] * 3
    assert rollouts["tags"].to_pylist() == [[], [], [], [], ["fact"], ["fact"]]
    assert rollouts["token_ids"].to_pylist()[2] == full[0]["token_ids"]
    assert rollouts["logprobs"].to_pylist()[2] == full[0]["logprobs"]
    for table in ("labels", "rollouts"):
        schemas = {str(pq.read_schema(part)) for part in (directory.path / table).iterdir()}
        assert len(schemas) == 1
        assert "null" not in schemas.pop().replace("not null", "")


def test_no_rows_are_no_part(tmp_path: Path):
    directory = make_directory(tmp_path)
    assert directory.write_rows("labels", []) is None
    assert not (directory.path / "labels").exists()


def test_a_folder_with_parts_continues_after_the_last(tmp_path: Path):
    rows = label_rows(make_feedback(), {})
    path = make_directory(tmp_path).path
    for _ in range(2):
        RunDirectory(path).write_rows("labels", rows)
    (path / "labels" / "part-000000.parquet").unlink()
    part = RunDirectory(path).write_rows("labels", rows)
    assert part is not None
    assert part.name == "part-000002.parquet"


# -- full disks ------------------------------------------------------------------------------------------------


def full_disk(monkeypatch: pytest.MonkeyPatch, target: str, *, times: int, error: int = errno.ENOSPC) -> None:
    """`module.target` fails this many times, then works."""
    works, left = getattr(module, target), [times]

    def fails(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error))
        return works(*args)

    monkeypatch.setattr(module, target, fails)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_the_ballast_and_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int):
    directory = make_directory(tmp_path)
    directory.append("metrics.jsonl", {"step": 0})
    full_disk(monkeypatch, "_append", times=1, error=error)
    with pytest.raises(DiskFullError, match=r"everything generated so far was written.*free some space"):
        directory.append("metrics.jsonl", {"step": 1})
    assert not (directory.path / ".ballast").exists()
    directory.append("metrics.jsonl", {"step": 2})
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_lines_that_are_written_together_are_all_there_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory = make_directory(tmp_path)
    full_disk(monkeypatch, "_append", times=1, error=errno.ENOSPC)
    with pytest.raises(DiskFullError):
        directory.append_all("groups.jsonl", [{"ordinal": ordinal} for ordinal in range(16)])
    lines = (directory.path / "groups.jsonl").read_text().splitlines()
    assert [json.loads(line)["ordinal"] for line in lines] == list(range(16))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_records_that_are_no_files_are_named_and_not_waited_for(tmp_path: Path, make: Any):
    directory = make_directory(tmp_path)
    directory.close()
    make(directory.path / "groups.jsonl")
    with pytest.raises(InputError, match=r"groups\.jsonl is no regular file"):
        RunDirectory.reopen(directory.path)


def test_rows_written_at_the_second_attempt_are_not_overwritten_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory = make_directory(tmp_path)
    write_table, tries = pq.write_table, []

    def full_once(*arguments: Any, **options: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(*arguments, **options)

    monkeypatch.setattr(pq, "write_table", full_once)
    with pytest.raises(DiskFullError, match="everything generated so far was written"):
        directory.write_rows("rollouts", rollout_rows(make_group(0)))
    directory.write_rows("rollouts", rollout_rows(make_group(1)))
    parts = sorted((directory.path / "rollouts").glob("*.parquet"))
    assert [pq.read_table(part)["ordinal"][0].as_py() for part in parts] == [0, 1]


def test_a_disk_that_stays_full_is_reported_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = make_directory(tmp_path)
    directory.write_json("summary.json", {"steps": 1})
    full_disk(monkeypatch, "_write_whole", times=2)
    with pytest.raises(DiskFullError, match="could not be written"):
        directory.write_json("summary.json", {"steps": 2})
    assert json.loads((directory.path / "summary.json").read_text()) == {"steps": 1}


def test_another_error_of_the_disk_is_not_called_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = make_directory(tmp_path)
    full_disk(monkeypatch, "_append", times=1, error=errno.EIO)
    with pytest.raises(UnwritableError, match=r"Input/output error; make its disk writable again.*--resume"):
        directory.append("metrics.jsonl", {})
    assert (directory.path / ".ballast").exists()


def test_a_file_that_could_not_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = make_directory(tmp_path)

    def no_space(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DiskFullError):
        directory.write_json("summary.json", {"steps": 1})
    assert list(directory.path.iterdir()) == []


def test_no_room_for_the_ballast_is_an_input_error_and_takes_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_space(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(InputError, match=r"No space left.*expected at least.*free some space"):
            make_directory(tmp_path, "demo")
    assert make_directory(tmp_path, "demo").path.name == "demo"


# -- disks that cannot be written -----------------------------------------------------------------------------------


def test_a_run_directory_that_becomes_read_only_is_one_message_and_closing_it_hides_nothing(small_disk: Path):
    directory = make_directory(small_disk)
    directory.append("events.jsonl", {"event": "started"})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write in (
        lambda: directory.append("events.jsonl", {}),
        lambda: directory.write_json("summary.json", {}),
        lambda: directory.write_rows("rollouts", rollout_rows(make_group())),
    ):
        with pytest.raises(UnwritableError, match="Read-only file system; make its disk writable again"):
            write()
    directory.close()
    with pytest.raises(InputError, match="Read-only file system; make it writable, or run elsewhere"):
        RunDirectory.reopen(directory.path)
    with pytest.raises(InputError, match=r"cannot be written: .*Read-only"):
        make_directory(small_disk, "other")


def test_a_removed_run_directory_gives_one_message_and_is_not_created_again(tmp_path: Path):
    directory = make_directory(tmp_path)
    directory.append("events.jsonl", {"event": "started"})
    shutil.rmtree(directory.path)
    for write in (
        lambda: directory.append("events.jsonl", {}),
        lambda: directory.write_json("summary.json", {}),
        lambda: directory.write_rows("rollouts", rollout_rows(make_group())),
    ):
        with pytest.raises(UnwritableError, match="is gone: it was removed or moved while the run used it"):
            write()
    directory.close()
    assert not directory.path.exists()


def test_a_file_system_without_locks_is_not_called_a_run_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(InputError, match="cannot be locked: No locks available; put runs on a file system"):
        make_directory(tmp_path)


# -- the ballast ----------------------------------------------------------------------------------------------------


def test_the_ballast_is_space_that_no_one_else_can_take(small_disk: Path):
    ballast = Ballast(small_disk)
    ballast.lay(64 * 1024)
    ballast.lay(192 * 1024)
    assert shutil.disk_usage(small_disk).free == 64 * 1024
    with pytest.raises(OSError, match="No space left"):
        ballast.lay(2**20)
    assert ballast.nbytes == 192 * 1024  # it keeps what it held
    ballast.lay(16 * 1024)
    assert shutil.disk_usage(small_disk).free == 240 * 1024
    assert ballast.give_up()
    assert not ballast.give_up()
    assert shutil.disk_usage(small_disk).free == 256 * 1024


def test_a_large_ballast_is_allocated_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("solon.host.ballast.EMULATED_BYTES", 4096)
    monkeypatch.setattr(os, "posix_fallocate", None)
    ballast = Ballast(tmp_path)
    with suppress(OSError):  # a file system that cannot allocate fails at once
        ballast.lay(2**20)
    assert (tmp_path / ".ballast").stat().st_blocks * 512 >= ballast.nbytes
    assert ballast.nbytes in (0, 2**20)


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: IoError(Os { code: 28 }, No space left on device)"), True),
        (RuntimeError("I/O error: (os error 28)"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (RuntimeError("os error 281)"), False),
    ],
)
def test_a_full_disk_is_recognised_by_its_errno_or_a_librarys_message(error: Exception, is_full: bool):
    assert is_no_space(error) == is_full
    outer = ValueError("saving failed")
    outer.__cause__ = error
    assert is_no_space(outer) == is_full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a quarter MiB."""
    place = tmp_path / "small"
    place.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_on_a_real_full_disk_every_line_is_whole_and_the_summary_fits(small_disk: Path):
    directory = make_directory(small_disk)
    directory.append("events.jsonl", {"event": "started"})
    written: list[int] = []

    def fill() -> None:
        for step in range(len(written), 1000):
            written.append(step)
            directory.append("metrics.jsonl", {"step": step, "text": "x" * 3000})

    with pytest.raises(DiskFullError, match="everything generated so far was written"):
        fill()
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == written
    directory.write_json("summary.json", {"status": "failed"})
    # And on to the very end: a write that fails is reported, and leaves no partial data.
    with pytest.raises(DiskFullError, match="could not be written"):
        fill()
    for line in (directory.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    with pytest.raises(DiskFullError):
        directory.write_json("trace.json", "x" * 300_000)
    assert sorted(p.name for p in directory.path.iterdir()) == ["events.jsonl", "metrics.jsonl", "summary.json"]


def test_on_a_real_full_disk_parquet_parts_are_whole_or_absent(small_disk: Path):
    directory = make_directory(small_disk)
    rows = rollout_rows(make_group(texts=("blue",) * 20))

    def fill(num_bytes: int) -> None:
        for ordinal in range(1000):
            texts = [os.urandom(num_bytes).hex() for _ in rows]  # incompressible
            directory.write_rows(
                "rollouts", [r | {"text": t, "ordinal": ordinal} for r, t in zip(rows, texts, strict=True)]
            )

    with pytest.raises(DiskFullError, match="everything"):
        fill(200)
    parts = list((directory.path / "rollouts").iterdir())
    assert len(parts) > 1
    for part in parts:
        assert pq.read_table(part).num_rows == 20
    with pytest.raises(DiskFullError, match="could not be written"):
        fill(2000)
    assert [p for p in (directory.path / "rollouts").iterdir() if p.suffix != ".parquet"] == []


def test_a_ballast_larger_than_the_disk_is_an_input_error(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BALLAST_BYTES", 2**20)
    with pytest.raises(InputError, match="No space left"):
        make_directory(small_disk)
    assert list(small_disk.iterdir()) == []


def test_reading_a_table_while_a_part_is_written_sees_only_whole_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = RunDirectory.reopen(tmp_path)
    directory.write_rows("rollouts", rollout_rows(make_group(0)))
    write, seen = pq.write_table, []

    def half_written(table: Any, path: Path) -> None:
        path.write_bytes(b"PAR1 half of a part")
        seen.append(pq.read_table(directory.path / "rollouts").num_rows)
        write(table, path)

    monkeypatch.setattr(pq, "write_table", half_written)
    part = directory.write_rows("rollouts", rollout_rows(make_group(1)))
    directory.replace_rows(part, pq.read_table(part))
    assert seen == [2, 4]
    assert pq.read_table(directory.path / "rollouts").num_rows == 4


def test_no_line_is_dropped_torn_or_mixed_when_several_threads_write_a_hundred_thousand(tmp_path: Path):
    directory = RunDirectory.create(tmp_path, "run", default="x")
    num_threads, each = 4, 25_000

    def write(thread: int) -> None:
        for number in range(each):
            directory.append("events.jsonl", {"thread": thread, "number": number, "text": "é\n" * (number % 7)})

    with ThreadPoolExecutor(num_threads) as pool:
        writing = [pool.submit(write, thread) for thread in range(num_threads)]
        extents = [directory.sync().files["events.jsonl"] for _ in range(20)]  # as a checkpoint counts them meanwhile
    for thread in writing:
        thread.result()
    last = directory.sync().files["events.jsonl"]
    directory.close()
    content = (tmp_path / "run" / "events.jsonl").read_bytes()
    found = [json.loads(line) for line in content.splitlines()]
    assert len(found) == last.lines == num_threads * each
    for thread in range(num_threads):
        assert [line["number"] for line in found if line["thread"] == thread] == list(range(each))
    assert hashlib.sha256(content).hexdigest() == last.sha256
    for extent in extents:
        assert content[: extent.bytes].count(b"\n") == extent.lines
        assert hashlib.sha256(content[: extent.bytes]).hexdigest() == extent.sha256
