"""Restores normal permissions of files that a library writes only for their owner."""

from __future__ import annotations

import os
import re
from pathlib import Path


def umask() -> int:
    """The umask of this process, read without setting it: other threads may be writing files."""
    try:
        found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def widen(directory: Path, pattern: str = "*.safetensors") -> None:
    """Give the files the mode that `open` gives new ones. Safetensors files are written under a temporary name,
    readable only by their owner, and keep that mode when renamed."""
    mode = 0o666 & ~umask()
    for file in directory.rglob(pattern):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
