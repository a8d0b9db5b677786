"""The secret that keys the nonces around texts. The authors of the texts must not know it; runs that share cached
verdicts must share it, since the nonce is part of the question."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from solon.errors import InputError
from solon.host.user_folders import state_folder

NAME = "nonce.key"
LENGTH = 32


def nonce_secret(directory: Path | None = None) -> bytes:
    """The secret of this user, created at the first call and readable only by the user.

    directory: its folder; by default the user's state directory. Raises InputError when it cannot be read or written,
    or has another length than a secret.
    """
    path = (directory or state_folder()) / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _create(path)
        secret = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the secret {path} cannot be read or written: {error.strerror}; change the permissions, or set "
            "XDG_STATE_HOME to a folder of yours"
        ) from None
    if len(secret) != LENGTH:
        raise InputError(
            f"the secret {path} holds {len(secret)} bytes, expected {LENGTH}; remove it, a new one is made"
        )
    return secret


def _create(path: Path) -> None:
    if path.exists():
        return
    scratch = path.with_name(f".{NAME}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(LENGTH))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(scratch, path)  # if two processes are first, one wins, and both read the same secret
    except FileExistsError:
        pass
    finally:
        scratch.unlink()
