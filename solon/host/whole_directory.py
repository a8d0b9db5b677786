"""A directory that appears whole or not at all: built beside its place, flushed to disk, renamed.

    with new_directory(Path("models/policy")) as scratch:
        write_files(scratch)
    # models/policy is here now; after an error nothing is.

What a killed process left is removed by the next one, which puts back what was to be replaced.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from solon.host.file_modes import umask


@contextmanager
def new_directory(place: Path, *, replace: bool = False) -> Iterator[Path]:
    """A scratch directory that is renamed to `place` at the end of the block.

    replace: an existing directory gives way; otherwise FileExistsError. Raises OSError; a scratch directory never stays
    behind, whatever was raised.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".making-{place.name}-"
    _remove_abandoned(place, prefix)
    scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=prefix))
    held = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: an abandoned directory stays
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        inner = scratch / "made"
        inner.mkdir()
        yield inner
        inner.chmod(0o777 & ~umask())
        flush(inner)
        _rename(inner, place, aside=scratch / "before", replace=replace)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(held)


def has_files(place: Path, names: Iterable[str]) -> bool:
    """Whether a directory has all these files, and none of them is empty."""
    try:
        return all((place / name).stat().st_size > 0 for name in names)
    except OSError:
        return False


def made_once(place: Path, names: Sequence[str], make: Callable[[Path], None]) -> None:
    """A directory that `make` fills, unless it has all these files already. Of several processes one makes it; a
    partial directory is never visible. Raises OSError."""
    if not has_files(place, names):
        with alone(place):
            if not has_files(place, names):
                with new_directory(place, replace=True) as scratch:
                    make(scratch)


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Waits until no other process builds this directory. The lock is a file beside it, and ends with its process."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def flush(directory: Path) -> None:
    """Write every file below a directory to disk, and the directories themselves."""
    for path in (*(one for one in directory.rglob("*") if not one.is_symlink()), directory):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(made: Path, place: Path, *, aside: Path, replace: bool) -> None:
    # A rename replaces an empty directory, and only that.
    if replace and place.exists():
        place.rename(aside)
    try:
        made.rename(place)
    except OSError:
        if aside.exists():
            aside.rename(place)
        if place.exists():
            raise FileExistsError(f"{place} exists") from None
        raise
    flush_entry(place.parent)


def flush_entry(folder: Path) -> None:
    """Write the entries of a directory to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(place: Path, prefix: str) -> None:
    """Scratch directories whose process has ended: their lock is free. What one of them was about to replace is put
    back if it was killed between its two renames."""
    for stale in place.parent.glob(f"{glob.escape(prefix)}*"):
        try:
            descriptor = os.open(stale, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (stale / "before").exists() and not place.exists():
                (stale / "before").rename(place)
            shutil.rmtree(stale, ignore_errors=True)
        except OSError:
            pass  # in use
        finally:
            os.close(descriptor)
