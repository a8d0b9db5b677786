"""A second location for checkpoints: any URL that fsspec supports. An object store has no rename, so a checkpoint there
is complete once its manifest exists, which is uploaded last, and current once `LATEST` names it, uploaded after that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solon.checkpoints.folder import LATEST, MANIFEST, CheckpointFolder, verify
from solon.errors import InputError, RunFailedError


def upload(checkpoint: Path, url: str) -> None:
    """Copy a checkpoint to any fsspec URL, its manifest last and `LATEST` after that. Raises RunFailedError."""
    with _filesystem(url) as (files, root):
        target = f"{root}/{checkpoint.name}"
        local = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MANIFEST]
        for path in (*local, checkpoint / MANIFEST):
            remote = f"{target}/{path.relative_to(checkpoint).as_posix()}"
            files.makedirs(remote.rpartition("/")[0], exist_ok=True)
            files.put_file(str(path), remote)
        files.pipe_file(f"{root}/{LATEST}", (checkpoint.name + "\n").encode())


def go_back(name: str, url: str) -> None:
    """Set `LATEST` to an earlier checkpoint: those after it belong to an abandoned branch of the run. Raises
    RunFailedError."""
    with _filesystem(url) as (files, root):
        if files.exists(f"{root}/{LATEST}"):
            files.pipe_file(f"{root}/{LATEST}", (name + "\n").encode())


def download(url: str, folder: CheckpointFolder, *, whole: int = -1, damaged: list[str] | None = None) -> str | None:
    """Download the last complete checkpoint from an fsspec URL; returns its name. None: there is none newer than step
    `whole`, the last complete one here.

    A local folder of the same name is damaged and is replaced. The one in `LATEST` is tried first, then the earlier
    ones; their damage is appended to `damaged`. The caller holds the lock of the run directory. Raises
    RunFailedError.
    """
    with _filesystem(url) as (files, root):
        if not files.exists(f"{root}/{LATEST}"):
            return None
        last = _step(files.cat_file(f"{root}/{LATEST}").decode().strip())
        there = {step for path in files.ls(root, detail=False) if (step := _step(path.rpartition("/")[2])) is not None}
        # A checkpoint newer than LATEST was never finished, or belongs to an abandoned branch.
        for step in sorted((s for s in there if last is not None and whole < s <= last), reverse=True):
            try:
                return _fetch(files, root, step, folder)
            except InputError as error:
                if damaged is not None:
                    damaged.append(f"in the checkpoint store: {error}")
        return None


def _fetch(files: Any, root: str, step: int, folder: CheckpointFolder) -> str:
    """Raises InputError when the remote copy is damaged."""
    name = folder.name(step)
    if not files.exists(f"{root}/{name}/{MANIFEST}"):
        raise InputError(f"{name} has no {MANIFEST}; its upload was interrupted")
    scratch = folder.begin(step)
    try:
        files.get(f"{root}/{name}/", f"{scratch}/", recursive=True)
        verify(scratch)
        folder.place(scratch, step=step)
    finally:
        folder.discard(scratch)
    return name


def _step(name: str) -> int | None:
    """The step of a checkpoint's name; None for other names."""
    digits = name.removeprefix("step-")
    return int(digits) if digits != name and digits.isdecimal() else None


@contextmanager
def _filesystem(url: str) -> Iterator[tuple[Any, str]]:
    """(file system, path) of a URL. Any error there becomes a RunFailedError without the URL, which may contain a
    secret."""
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"checkpoint_url: {type(error).__name__}; expected a URL that fsspec knows, with its package installed"
        ) from None
    try:
        yield files, root.rstrip("/")
    except (InputError, RunFailedError):
        raise
    except Exception as error:
        scheme = url.partition("://")[0]
        raise RunFailedError(
            f"the checkpoint store ({scheme}) failed with {type(error).__name__}; check its address and credentials"
        ) from error
