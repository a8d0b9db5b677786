"""Names and files in a run file that become models first: `nursery:policy`, `english:judge`, `model.gguf`.

    path = resolver(["nursery:policy", "judge.gguf"], progress=True)
    path("nursery:policy"), path("judge.gguf"), path("/models/mine")    # the last one stays

A family of names has one entry in `FAMILIES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from solon.cli import english_names, nursery_names
from solon.errors import InputError, nearest
from solon.files.marks import NamesFile, NamesModel, NamesPrompts, mapped, values
from solon.files.row_sources import find_source
from solon.host.user_folders import cache_folder, unusable
from solon.models.given_names import PREFIXES, is_gguf, is_given_name

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
    """The run file with paths instead of names and GGUF files; makes what is not in the cache.

    Raises InputError before that when prompts or a constitution that the run names by path are missing: making a judge
    takes minutes.
    """
    check_names(_names(run))
    _require_files(run)
    path = resolver(_names(run), progress=progress)
    return mapped(mapped(run, NamesModel, path), NamesFile, path)


def resolver(names: Sequence[str], *, progress: bool) -> Callable[[str], str]:
    """A function that replaces names and GGUF files by paths and keeps all other values.

    Makes only what is among `names`; all are checked before the first is made. Raises InputError for a name that there
    is not, and for a file that cannot be imported.
    """
    wanted = check_names(names)
    found: dict[str, str] = {}
    for value in sorted({name for name in names if is_gguf(name)}):
        found[value] = _imported(value, progress=progress)
    for family, asked in wanted.items():
        if asked:
            made = family.paths(asked, progress=progress)
            found |= {family.prefix + name: path for name, path in made.items()}
    return lambda value: found.get(value, value)


def check_names(names: Sequence[str]) -> dict[Family, list[str]]:
    """The names of each family, without prefixes. Raises InputError for a name or GGUF file that there is not."""
    for value in names:
        prefix, colon, name = value.partition(":")
        if colon and f"{prefix.lower()}:" in PREFIXES and not is_given_name(value):
            raise InputError(f"got the name `{value}`, expected `{prefix.lower()}:{name.lower()}`: in lower case")
        if is_gguf(value) and not os.path.isfile(os.path.expanduser(value)):  # noqa: PTH113, PTH111  # raise nothing
            raise InputError(f"{value} does not exist, expected a GGUF file; check the path")
    return {family: sorted({family.check(n) for n in names if n.startswith(family.prefix)}) for family in FAMILIES}


def is_constitution_name(value: str) -> bool:
    """Whether a value names a constitution that Solon ships."""
    return is_given_name(value) and value.partition(":")[2] == "constitution"


def _imported(value: str, *, progress: bool) -> str:
    from solon.cli.models import import_into_cache

    folder = cache_folder()
    try:
        return str(import_into_cache(Path(value), progress=progress))
    except OSError as error:
        raise unusable(folder, error, "XDG_CACHE_HOME") from error


def _require_files(run: RunFile) -> None:
    for value in values(run, NamesPrompts):
        if value and not needs_making(value):
            with suppress(OSError):  # the checks of the run name it with its cause
                find_source(value, what="prompt", split=run.data.split)
    if not needs_making(run.constitution) and not os.path.exists(run.constitution):  # noqa: PTH110  # raises nothing
        raise InputError(f"constitution {run.constitution} does not exist; check the path")


def _names(run: RunFile) -> tuple[str, ...]:
    return (*values(run, NamesModel), *values(run, NamesFile))
