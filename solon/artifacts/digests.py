"""Digests of values and of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from solon.errors import InputError

LENGTH = 32
"""Hexadecimal digits of a digest."""
_CHUNK = 1 << 20


def digest_of(value: Any) -> str:
    """Digest of a JSON value, whatever the order of its keys. Raises ValueError for numbers that are not finite.

    >>> digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def files_of(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, by its path there. Raises InputError for a link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise InputError(f"{path} is a link, expected a file: the content of a link is not in the folder; copy it")
        if path.is_file():
            found[name] = file_digest(path)
    return found


def file_digest(path: Path) -> str:
    """Digest of a file's whole content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:LENGTH]


def content_digest(path: Path) -> str:
    """Digest of a file, or of all files of a folder with their names."""
    return digest_of(files_of(path)) if path.is_dir() else file_digest(path)
