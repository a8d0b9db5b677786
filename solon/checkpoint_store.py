"""A second place for checkpoints: any URL that fsspec knows. An object store has no rename, so a checkpoint there is
whole when its manifest is there, which comes last, and is the last one when `LATEST` says so, which comes after that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solon.checkpoints import LATEST, MANIFEST, CheckpointFolder, verify
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


def download(url: str, folder: CheckpointFolder) -> str | None:
    """Copy the last checkpoint from an fsspec URL, unless it is here; returns its name. None: there is none. Raises
    RunFailedError, and InputError when it is damaged."""
    with _filesystem(url) as (files, root):
        if not files.exists(f"{root}/{LATEST}"):
            return None
        name: str = files.cat_file(f"{root}/{LATEST}").decode().strip()
        step = int(name.removeprefix("step-"))
        if step in folder.steps():
            return name
        scratch = folder.begin(step)
        files.get(f"{root}/{name}/", f"{scratch}/", recursive=True)
        verify(scratch)
        scratch.replace(folder.path / name)
        return name


@contextmanager
def _filesystem(url: str) -> Iterator[tuple[Any, str]]:
    """(file system, path) of a URL; whatever goes wrong there is a RunFailedError that does not repeat the URL: it may
    hold a secret."""
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
            f"the checkpoint store ({scheme}) failed with {type(error).__name__}; look at its address and credentials"
        ) from error
