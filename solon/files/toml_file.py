"""Reads a settings file, TOML or JSON, with bounds, so that no file can exhaust the process."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solon.errors import InputError
from solon.files.text_file import read_text

MAX_CHARACTERS = 1024 * 1024
MAX_DEPTH = 32


def read_toml(path: Path, *, what: str) -> dict[str, Any]:
    """The content of a TOML file, or of a JSON file by its name. Raises an InputError that begins with `what` and never
    shows a value.

    what: names the file in messages, as in `run file`.
    """
    language = "JSON" if path.suffix.lower() == ".json" else "TOML"
    text = read_text(path, what=what, most=MAX_CHARACTERS)
    try:
        raw = json.loads(text) if language == "JSON" else tomllib.loads(text)
        if is_deep(raw):
            raise RecursionError
    except RecursionError:
        said = f"nested too deeply, expected {MAX_DEPTH} levels at most"
        raise InputError(f"{what} {path} is not {language} that can be read: {said}") from None
    except ValueError as error:
        raise InputError(f"{what} {path} is not {language}: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{what} {path} holds a {type(raw).__name__}, expected an object")
    return raw


def is_deep(value: Any) -> bool:
    """Whether a value has more than `MAX_DEPTH` levels, which recursive code could not process."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for one in level
            if isinstance(one, Mapping | list)
            for item in (one.values() if isinstance(one, Mapping) else one)
        ]
        if not level:
            return False
    return True
