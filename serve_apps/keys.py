"""Keys of callers: shown once when they are made, kept as digests, compared in constant time.

A key has 256 random bits, so that a plain digest cannot be searched; the file has one line for each: `name sha256`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from solon.errors import InputError

PREFIX = "solon-"
NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")
NOBODY = hashlib.sha256(b"").hexdigest()
"""Compared where there are fewer keys, so that there is always something to compare."""


class Keys:
    """Who may ask. `Keys.load(path).caller("solon-…")`"""

    def __init__(self, digests: dict[str, str]) -> None:
        self._digests = digests

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Raises InputError for a file that cannot be read, holds no key, or that others may read."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the keys {path} cannot be read: {error}; make one with: solon serve key NAME") from None
        if mode & 0o007:
            raise InputError(f"the keys {path} can be read by every account; run: chmod 600 {path}")
        digests: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            name, _, digest = line.partition(" ")
            if not line.strip() or line.startswith("#"):
                continue
            if not NAME.fullmatch(name) or not re.fullmatch(r"[0-9a-f]{64}", digest.strip()):
                raise InputError(
                    f"the keys {path}: line {number} is no `name sha256`; make keys with: solon serve key NAME"
                )
            digests[name] = digest.strip()
        if not digests:
            raise InputError(f"the keys {path} are empty, expected one; make it with: solon serve key NAME")
        return cls(digests)

    def caller(self, key: str) -> str | None:
        """The name behind a key; None: no caller has it. Takes as long for a wrong key as for a right one."""
        digest, found = _digest(key), None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        hmac.compare_digest(digest, NOBODY)
        return found


def new_key(name: str, path: Path) -> str:
    """Make a key and append its digest to a file that only this account can read. Raises InputError."""
    if not NAME.fullmatch(name):
        raise InputError(f"got the name {name[:60]!r}, expected at most 60 letters, digits, `.`, `_` and `-`")
    try:
        known = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the keys {path} cannot be read: {error}; choose another file") from None
    if any(line.partition(" ")[0] == name for line in known.splitlines()):
        raise InputError(f"the keys {path} have {name!r} already; remove its line, or choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("\n" if known and not known.endswith("\n") else "")
            file.write(f"{name} {_digest(key)}\n")
    except OSError as error:
        raise InputError(f"the keys {path} cannot be written: {error.strerror}; choose another file") from None
    return key


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
