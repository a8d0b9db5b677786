"""Names with a prefix in a run file denote models and files that Solon makes on this machine: `nursery:policy`.

Who makes them is in `solon/cli/names.py`.
"""

from __future__ import annotations

from pathlib import Path

PREFIXES = ("nursery:", "english:")
GGUF = ".gguf"


def is_given_name(value: str) -> bool:
    """Whether a value is such a name, and no path and no hub name."""
    return value.startswith(PREFIXES)


def is_gguf(value: str) -> bool:
    """Whether a value names a GGUF file, which is imported before it is used."""
    return value.lower().endswith(GGUF) and not is_given_name(value)


def same_place(one: str, other: str) -> bool:
    """Whether two names or paths of models or files are the same one."""
    if one == other:
        return True
    first, second = Path(one), Path(other)
    return first.exists() and second.exists() and first.samefile(second)
