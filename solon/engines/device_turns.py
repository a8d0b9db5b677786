"""Processes that share a GPU start on it one at a time, and wait until its memory is free.

The lock is a file per user and device: the kernel frees it when its holder dies, so the replacement of a killed worker
does not wait for a dead process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from solon.errors import InputError, RunFailedError

FREE_WITHIN_S = 60.0
"""The driver takes some seconds to free the memory of a process that was killed."""
_GIB = 1 << 30


def device_key() -> str:
    """Identifies the GPU of this process, the same for all processes; empty: none. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_properties(0).uuid)


@contextlib.contextmanager
def turn_on_device(key: str, *, folder: Path | None = None) -> Iterator[None]:
    """Holds the device while other processes of this user wait for it. key: `device_key()`; empty: no lock. Raises
    InputError when the lock folder belongs to another user."""
    if not key:
        yield
        return
    path = (folder or _folder()) / f"{re.sub('[^A-Za-z0-9-]', '_', key)}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Unlocked explicitly: a child of this process may have inherited the file.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def wait_for_memory(
    needed: int, memory: Callable[[], tuple[int, int]], *, who: str, within_s: float = FREE_WITHIN_S
) -> None:
    """Returns when `needed` bytes of the device are free. memory: (free, total) now. Raises RunFailedError when they do
    not become free in time."""
    until = time.monotonic() + within_s
    while True:
        free, total = memory()
        if free >= needed:
            return
        if time.monotonic() >= until:
            raise RunFailedError(
                f"{who} needs {needed / _GIB:.1f} GiB of the GPU's {total / _GIB:.1f}, and other processes leave "
                f"{free / _GIB:.1f}; check nvidia-smi, lower kv_cache_gib or gpu_memory_utilization, or give it "
                "a GPU of its own with num_gpus = 1 (`solon check --device-gib` prints the memory of every role)"
            )
        time.sleep(min(1.0, within_s / 10))


def _folder() -> Path:
    """A private folder of this user on this machine."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    user = os.getuid()
    home = Path(base) / "solon" if base and Path(base).is_dir() else Path(tempfile.gettempdir()) / f"solon-{user}"
    path = home / "devices"
    for folder in (home, path):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if folder.is_symlink() or folder.stat().st_uid != user:
            raise InputError(
                f"{folder} belongs to another user, expected a folder of your own; remove it or set TMPDIR"
            )
    return path
