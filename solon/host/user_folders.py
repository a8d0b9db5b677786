"""Solon's folders of an account: caches of grown models and rendered prompts, and the secret of its nonces."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import platformdirs

from solon.errors import InputError


def cache_folder() -> Path:
    """Folder of reproducible files. Raises InputError if the account has no home."""
    return _known(platformdirs.user_cache_path("solon"), "XDG_CACHE_HOME")


def state_folder() -> Path:
    """Folder of files that cannot be reproduced. Raises InputError if the account has no home."""
    return _known(platformdirs.user_state_path("solon"), "XDG_STATE_HOME")


def hub_folder() -> Path:
    """Model folder of the Hugging Face hub; it may not exist."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not cache:
        with suppress(RuntimeError):  # an account without a home
            cache = str(Path("~/.cache").expanduser())
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")


def unusable(folder: Path, error: OSError, variable: str) -> InputError:
    """The error for a folder that cannot be written."""
    return InputError(
        f"{folder} cannot be used: {error.strerror}; set {variable} to a folder of yours, or HOME to your home"
    )


def _known(path: Path, variable: str) -> Path:
    if path.parts[:1] == ("~",):  # the home of this account is unknown
        raise InputError(f"this account has no home directory; set HOME, or {variable} to a folder of yours")
    return path.absolute()
