"""A text file that a person hands in, read with a bound, so that no file can exhaust the process's memory."""

from __future__ import annotations

from pathlib import Path

from solon.errors import InputError


def read_text(path: Path, *, what: str, most: int) -> str:
    """At most `most` characters, without the byte order mark. Raises an InputError that begins with `what`."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(most + 1)
    except FileNotFoundError:
        raise InputError(f"{what} {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {path} cannot be read: {error}") from None
    if len(text) > most:
        raise InputError(f"{what} {path} has more than {most:,} characters; is it the right file?")
    return text
