"""The temporary folder of a cluster that starts here: its place, its permissions, its leftovers."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.ray_session import session_folder as module
from cluster.ray_session.session_folder import KEEP_LOGS, SESSIONS_KEPT, session_folder
from solon.errors import InputError

NAME = f"solon-{os.getuid()}"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR, with a short path."""
    with tempfile.TemporaryDirectory(prefix="f", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.delenv(KEEP_LOGS, raising=False)
        yield Path(folder)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of one second have names of their own."""
    numbers = iter(range(10**6))
    monkeypatch.setattr(module.time, "strftime", lambda _: f"0101-{next(numbers):06d}")


def write_session(path: Path, *, log: str = "a worker died\n", kib: int = 0) -> None:
    """Ray's leftovers: logs, sockets, objects on disk."""
    session = path / "session_2026-01-01_00-00-00_000000_1"
    for name in ("logs", "sockets", "ray_spilled_objects"):
        (session / name).mkdir(parents=True)
    (session / "logs" / "worker.err").write_text("x" * (kib << 10) + log)
    (session / "ray_spilled_objects" / "object").write_bytes(bytes(1 << 16))
    (path / "session_latest").symlink_to(session)
    (path / "tmp" / "pymp-1").mkdir()


def fail_session(*, kib: int = 0) -> Path:
    return end_session(ValueError("an engine died"), kib=kib)


def end_session(error: BaseException, *, kib: int = 0) -> Path:
    """A session that ends with this."""
    with suppress(type(error)), session_folder() as folder:
        write_session(folder.path, kib=kib)
        raise error
    return folder.path


def test_a_good_end_leaves_nothing(place: Path):
    for _ in range(3):
        with session_folder() as folder:
            write_session(folder.path)
    assert list(place.iterdir()) == []


def test_a_failure_leaves_its_logs_and_no_more(place: Path):
    path = fail_session()
    assert (path / "logs" / "worker.err").read_text() == "a worker died\n"
    assert {entry.name for entry in path.iterdir()} == {"logs", "lock"}


def test_ctrl_c_is_no_failure(place: Path):
    assert not end_session(KeyboardInterrupt()).exists()


def test_logs_of_a_good_end_stay_on_request(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(KEEP_LOGS, "1")
    with session_folder() as folder:
        write_session(folder.path)
    assert (folder.path / "logs" / "worker.err").exists()


def test_logs_of_the_newest_few_failures_stay(place: Path):
    paths = [fail_session() for _ in range(SESSIONS_KEPT + 3)]
    assert [path.exists() for path in paths] == [False] * 3 + [True] * SESSIONS_KEPT


def test_logs_are_bounded_together_and_each(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "KIB_OF_A_LOG", 600)
    monkeypatch.setattr(module, "MIB_KEPT", 1)
    first, second = fail_session(kib=700), fail_session(kib=700)
    assert not first.exists(), "two together are over the bound"
    log = second / "logs" / "worker.err"
    assert log.stat().st_size == 600 << 10
    assert log.read_text().endswith("a worker died\n")


def test_a_session_whose_driver_was_killed_is_cleared_by_the_next_start(place: Path):
    with session_folder() as first:
        pass
    first.path.mkdir(parents=True)
    (first.path / "tmp").mkdir()
    (first.path / "lock").touch()  # not held by any process
    write_session(first.path)
    with session_folder():
        assert {entry.name for entry in first.path.iterdir()} == {"logs", "lock"}


def test_a_session_that_is_alive_is_left_alone(place: Path):
    with session_folder() as first:
        write_session(first.path)
        for _ in range(SESSIONS_KEPT + 2):
            fail_session()
        assert (first.path / "session_latest" / "sockets").is_dir()
        assert (first.path / "tmp" / "pymp-1").is_dir()


def test_sessions_of_other_clusters_are_left_alone(place: Path):
    other = place / "ray" / "session_2026-01-01_00-00-00_000000_1"
    other.mkdir(parents=True)
    fail_session()
    with session_folder():
        pass
    assert other.is_dir()


def test_only_its_account_can_enter(place: Path):
    (place / NAME).mkdir()
    (place / NAME).chmod(0o777)
    with session_folder() as folder:
        assert stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700


def test_a_folder_that_is_a_link_to_elsewhere_is_refused(place: Path, tmp_path: Path):
    (place / NAME).symlink_to(tmp_path)
    with pytest.raises(InputError, match=f"{NAME} is not this account's own folder; remove it, or set TMPDIR"):
        session_folder().__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda place: place / "missing", "is not a folder"),
        (lambda place: place / ("x" * 60), "is longer than"),
        (lambda place: Path("relative"), "is not an absolute path"),
    ],
    ids=["missing", "long", "relative"],
)
def test_tmp_replaces_an_unusable_tmpdir_with_a_note(
    place: Path, monkeypatch: pytest.MonkeyPatch, make: object, why: str
):
    asked: Path = make(place)  # type: ignore[operator]
    if len(asked.name) == 60:
        asked.mkdir()
    monkeypatch.setenv("TMPDIR", str(asked))
    with session_folder() as folder:
        assert folder.path.parent == Path("/tmp") / NAME
        assert re.search(f"^Ray's files are in /tmp, since TMPDIR, {asked}, {why}", folder.note)
    monkeypatch.setenv("RAY_TMPDIR", str(asked))
    with pytest.raises(InputError, match=f"RAY_TMPDIR is {asked}, which {why}"):
        session_folder().__enter__()


def test_a_full_disk_is_reported_before_anything_starts(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(InputError, match=r"TMPDIR, .*, has 1 MiB of free space, expected 64, and /tmp has 1 MiB"):
        session_folder().__enter__()


def test_the_longest_accepted_path_has_room_for_a_socket():
    longest = module._LONGEST_SOCKET - len(f"/{NAME}/{module._NAME}{module._SOCKET}")
    path = "/" + "x" * (longest - 1) + f"/{NAME}/{module._NAME}{module._SOCKET}"
    assert len(path) == module._LONGEST_SOCKET
