"""Files that may be foreign are opened only when they are regular: opening a pipe waits for its writer for ever."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def require_regular(path: Path) -> None:
    """Raises OSError for what is no regular file, FileNotFoundError for what is missing."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
