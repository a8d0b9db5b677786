"""Files that a library writes for their owner alone, made as readable as all others."""

from __future__ import annotations

import os
import re
from pathlib import Path


def umask() -> int:
    """Of this process. Read, and not set: other threads write files meanwhile."""
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
    """Give the files the mode that `open` gives new ones. Safetensors files are written under another name, for their
    owner alone, and keep that mode when they are renamed."""
    mode = 0o666 & ~umask()
    for file in directory.rglob(pattern):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
