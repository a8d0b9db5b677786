"""The paths that a submitted file names, as written: which are uploaded, and which the cluster must have."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.submission.package import Package
from solon.errors import InputError
from solon.files.overrides import parse_override
from solon.files.toml_file import read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A path as a user wrote it."""

    written: str
    beside: Path
    """The folder that it is relative to."""

    @property
    def is_absolute(self) -> bool:
        return self.written.startswith("~") or Path(self.written).is_absolute()

    @property
    def is_pattern(self) -> bool:
        """It may stand for several files."""
        return any(mark in self.written for mark in "*?[")

    @property
    def place(self) -> Path:
        """Without `..`; symbolic links are uploaded as what they point to."""
        return Path(os.path.normpath(self.beside / Path(self.written).expanduser()))


def named_paths(values: Collection[str], file: Path, *, overrides: Sequence[str], folder: Path) -> list[Named]:
    """How a file and `--set` wrote these models and files. values: as resolved by the loaded file, names of the hub
    among them. folder: that of relative paths in overrides."""
    written = [(text, file.parent) for text in _texts(read_toml(file, what="run file"))]
    for override in overrides:
        _, value, plain = parse_override(override)
        written += [(text, folder) for text in (*_texts(value), plain)]
    found = {}
    for text, beside in written:
        named = Named(written=text, beside=beside)
        with suppress(OSError, ValueError, RuntimeError):  # a text that is no path
            place = beside / Path(text).expanduser()
            if text in values and not named.is_absolute and ".." not in Path(text).parts:
                continue  # a name of the hub
            if {text, str(place.absolute()), str(place.resolve())} & set(values):
                found[text, beside] = named
    return list(found.values())


def check_paths(paths: Collection[Named], package: Package) -> list[str]:
    """A note on paths that the cluster must have. Raises InputError for a path that means another file there."""
    elsewhere = []
    for named in paths:
        inside = _is_within(named.place, package.folder)
        if named.is_absolute:
            if inside and package.holds(named.place):
                raise InputError(
                    f"{named.written}, which the file names, is an absolute path into the folder {package.folder} that "
                    "is uploaded, and the copy of it on the cluster lies elsewhere; write it relative to the run file"
                )
            elsewhere.append(named.written)
        elif not inside:
            raise InputError(
                f"{named.written}, which the file names, leaves the folder {package.folder} that is uploaded, expected "
                "a path within it, or one that the cluster has; write it absolute, or name a folder that holds both: "
                "--working-dir"
            )
        else:
            _check_inside(named, package)
    if not elsewhere:
        return []
    return [f"not uploaded, and expected at the same path on every node: {', '.join(elsewhere)}"]


def _check_inside(named: Named, package: Package) -> None:
    place = named.place
    if not place.exists():
        if named.is_pattern:
            return
        raise InputError(f"{place}, which the file names, does not exist; check the path")
    if not package.holds(place):
        raise InputError(
            f"{place}, which the file names, is not uploaded: .rayignore or .gitignore excludes it; expected it in "
            "the package; change the exclusion, or name a path that the cluster has"
        )


def _is_within(place: Path, folder: Path) -> bool:
    return place.is_relative_to(folder) or place.is_relative_to(folder.resolve())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
