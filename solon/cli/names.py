"""Names and files in a run file that become models first: `nursery:policy`, `english:judge`, `model.gguf`.

    path = resolver(["nursery:policy", "judge.gguf"], progress=True)
    path("nursery:policy"), path("judge.gguf"), path("/models/mine")    # the last one stays

A family of names has one entry in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from solon.cli import english_names, nursery_names
from solon.errors import InputError, nearest
from solon.files.marks import NamesFile, NamesModel, mapped, values
from solon.models.given_names import is_gguf, is_given_name

if TYPE_CHECKING:
    from cluster.config.run_file import RunFile

R = TypeVar("R", bound="RunFile")


class Paths(Protocol):
    """Makes what the names denote, where it is not in the cache yet, and returns their paths."""

    def __call__(self, names: Collection[str], *, progress: bool) -> dict[str, str]: ...


@dataclass(frozen=True, slots=True)
class Family:
    """The names of one prefix."""

    prefix: str
    names: tuple[str, ...]
    paths: Paths

    def check(self, value: str) -> str:
        """The name without its prefix. Raises InputError for a name that there is not."""
        name = value.removeprefix(self.prefix)
        if name not in self.names:
            raise InputError(
                f"got the name `{value}`, expected one of {', '.join(self.prefix + n for n in self.names)}"
                f"{nearest(name, self.names)}"
            )
        return name


FAMILIES = (
    Family("nursery:", nursery_names.NAMES, nursery_names.nursery_paths),
    Family("english:", english_names.NAMES, english_names.english_paths),
)


def needs_making(value: str) -> bool:
    """Whether a value is a name or a GGUF file rather than a path, a hub name or an endpoint."""
    return is_given_name(value) or is_gguf(value)


def uses_names(run: RunFile) -> bool:
    """Whether any model or file must be made."""
    return any(map(needs_making, _names(run)))


def with_paths(run: R, *, progress: bool) -> R:
    """The run file with paths instead of names and GGUF files; makes what is not in the cache."""
    path = resolver(_names(run), progress=progress)
    return mapped(mapped(run, NamesModel, path), NamesFile, path)


def resolver(names: Sequence[str], *, progress: bool) -> Callable[[str], str]:
    """A function that replaces names and GGUF files by paths and keeps all other values.

    Makes only what is among `names`; all are checked before the first is made. Raises InputError for a name that there
    is not, and for a file that cannot be imported.
    """
    wanted = {family: sorted({family.check(n) for n in names if n.startswith(family.prefix)}) for family in FAMILIES}
    found: dict[str, str] = {}
    for value in sorted({name for name in names if is_gguf(name)}):
        found[value] = _imported(value, progress=progress)
    for family, asked in wanted.items():
        if asked:
            made = family.paths(asked, progress=progress)
            found |= {family.prefix + name: path for name, path in made.items()}
    return lambda value: found.get(value, value)


def is_constitution_name(value: str) -> bool:
    """Whether a value names a constitution that Solon ships."""
    return is_given_name(value) and value.partition(":")[2] == "constitution"


def _imported(value: str, *, progress: bool) -> str:
    from solon.cli.models import import_into_cache

    return str(import_into_cache(Path(value), progress=progress))


def _names(run: RunFile) -> tuple[str, ...]:
    return (*values(run, NamesModel), *values(run, NamesFile))
