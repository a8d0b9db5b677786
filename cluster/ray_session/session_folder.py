"""The temporary folder of a cluster that Solon starts: short, private, removed after a good end.

    /tmp/solon-1000/            of one account, closed to all others
        .lock                   held while a folder is made or old ones are removed
        1128-180530/            of one cluster, named after its start
            lock                held by the driver as long as it lives
            session_*/          Ray's own
            tmp/                TMPDIR of the cluster's processes

After a failure the logs stay: the newest few, within a bound. Nothing outside of this folder is touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from solon.errors import InputError, RunFailedError, one_line

SESSIONS_KEPT = 5
"""The number of failed sessions whose logs are kept."""
MIB_KEPT = 24
"""The total size of kept logs; the newest is kept whatever its size."""
KIB_OF_A_LOG = 512
"""Of a larger log only the end is kept."""
MIB_NEEDED = 64
"""Free space below which Ray does not start, or fails soon after."""
KEEP_LOGS = "SOLON_KEEP_RAY_LOGS"
"""Environment variable: 1 also keeps the logs of sessions that ended well, within the same bounds."""

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_NAME = "0101-000000"
REMOVAL_S = 5.0
"""How long the last processes of a cluster may take to exit before its folder is left to the next start."""


@dataclass(frozen=True, slots=True)
class SessionFolder:
    """A folder for Ray (`_temp_dir`), and a note for the user about its place."""

    path: Path
    note: str = ""

    @property
    def scratch(self) -> Path:
        """TMPDIR of the cluster's processes."""
        return self.path / "tmp"


@contextmanager
def session_folder() -> Iterator[SessionFolder]:
    """A folder for one cluster; enter it before Ray starts, leave it after Ray has ended.

    Removes leftovers of earlier sessions. A block that raises keeps Ray's logs; bad input and Ctrl-C do not count as
    failures. Raises InputError when there is no place for it.
    """
    root, note = _root()
    try:
        with _locked(root):
            path, lock = _create(root)
            prune(root)
    except OSError as error:
        raise InputError(f"{root} cannot be written: {error.strerror}; set TMPDIR to a folder with space") from None
    keep_logs = os.environ.get(KEEP_LOGS) == "1"
    try:
        yield SessionFolder(path, note)
    except InputError:  # Ray's logs do not explain a refusal
        raise
    except Exception:
        keep_logs = True
        raise
    finally:
        with suppress(OSError), _locked(root):
            if not keep_logs:
                _remove(path)
            os.close(lock)
            prune(root)
        with suppress(OSError):
            (root / ".lock").unlink()
            root.rmdir()


def prune(root: Path) -> None:
    """Removes sessions that no driver holds, except for the newest logs. Needs the root's lock."""
    ended = []
    for path in root.iterdir():
        if path.is_symlink() or not path.is_dir() or _is_held(path):
            continue
        _keep_logs(path)
        ended.append((path.stat().st_mtime, path))
    total = 0
    for number, (_, path) in enumerate(sorted(ended, reverse=True)):
        total += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if number >= SESSIONS_KEPT or (number and total > MIB_KEPT << 20) or not (path / "logs").is_dir():
            shutil.rmtree(path, ignore_errors=True)


# -- the place ---------------------------------------------------------------------------------------------------------


def _root() -> tuple[Path, str]:
    """(the account's folder, a note when it is not where the environment says). Raises InputError."""
    if asked := os.environ.get("RAY_TMPDIR"):
        if why := _unfit(Path(asked)):
            raise InputError(f"RAY_TMPDIR is {asked}, which {why}; expected a short path with space, such as /tmp")
        return _private(Path(asked)), ""
    asked = os.environ.get("TMPDIR") or tempfile.gettempdir()
    why = _unfit(Path(asked))
    if not why:
        return _private(Path(asked)), ""
    for place in (Path("/tmp"), Path("/var/tmp")):
        if not _unfit(place):
            return _private(place), f"Ray's files are in {place}, since TMPDIR, {asked}, {why}"
    raise InputError(
        f"there is no place for Ray's files: TMPDIR, {asked}, {why}, and /tmp {_unfit(Path('/tmp'))}; set TMPDIR to a "
        f"folder with a short path and {MIB_NEEDED} MiB of free space"
    )


def _unfit(place: Path) -> str:
    """Why Ray's files cannot be here; empty: they can."""
    longest = _LONGEST_SOCKET - len(os.fsencode(f"/solon-{os.getuid()}/{_NAME}{_SOCKET}"))
    if not place.is_absolute():
        return "is not an absolute path"
    if not place.is_dir():
        return "is not a folder"
    if len(os.fsencode(place)) > longest:
        return f"is longer than {longest} bytes: a socket below it would have too long a path"
    if not os.access(place, os.W_OK | os.X_OK):
        return "cannot be written"
    try:
        free = shutil.disk_usage(place).free
        # Space that is free for others may not be free for this account.
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(1 << 20))
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    if free < MIB_NEEDED << 20:
        return f"has {free >> 20} MiB of free space, expected {MIB_NEEDED}"
    return ""


def _private(place: Path) -> Path:
    """A subfolder that only this account can enter. Raises InputError when another account owns it."""
    root = place / f"solon-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise InputError(f"{root} is not this account's own folder; remove it, or set TMPDIR to another place")
        root.chmod(0o700)
    except OSError as error:
        raise InputError(f"{root} cannot be made: {error.strerror}; set TMPDIR to another place") from None
    return root


# -- one session -------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    while True:
        descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        is_current = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                is_current = os.path.samestat(os.fstat(descriptor), (root / ".lock").stat())
            if is_current:  # not removed while this process waited for the lock
                yield
                return
        finally:
            os.close(descriptor)


def _create(root: Path) -> tuple[Path, int]:
    """(the folder, its lock, which is held)."""
    while True:
        path = root / time.strftime("%m%d-%H%M%S")
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            break
        time.sleep(0.2)
    (path / "tmp").mkdir()
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return path, lock


def _is_held(path: Path) -> bool:
    """Whether a live driver uses this folder."""
    try:
        descriptor = os.open(path / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove(path: Path) -> None:
    """Remove all of it, although its last processes may still write."""
    deadline = time.monotonic() + REMOVAL_S
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _keep_logs(path: Path) -> None:
    """Keep only the logs of a session that has ended, and only the end of a long log."""
    changed = path.stat()
    logs = path / "logs"
    for session in path.glob("session_*"):
        if (session / "logs").is_dir() and not session.is_symlink() and not logs.exists():
            with suppress(OSError):
                (session / "logs").rename(logs)
    for entry in path.iterdir():
        if entry == logs:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != "lock":
            entry.unlink(missing_ok=True)
    for log in logs.rglob("*") if logs.is_dir() else ():
        with suppress(OSError):
            if log.is_symlink():
                log.unlink()
            elif log.is_file() and log.stat().st_size > KIB_OF_A_LOG << 10:
                _keep_end(log)
    os.utime(path, (changed.st_atime, changed.st_mtime))


def _keep_end(log: Path) -> None:
    with log.open("rb") as file:
        file.seek(-(KIB_OF_A_LOG << 10), os.SEEK_END)
        end = file.read()
    log.write_bytes(end)


def start_failure(folder: SessionFolder, error: Exception) -> RunFailedError:
    """The message when Ray does not start in this folder."""
    return RunFailedError(
        f"Ray did not start: {one_line(str(error), longest=500).rstrip('.')}; its logs are in {folder.path / 'logs'}; "
        "if the machine was busy, start again"
    )
