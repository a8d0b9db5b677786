"""The working directory that a job gets: what Ray would upload of it, and whether it can.

Ray leaves out what `.gitignore`, `.rayignore` and its own defaults exclude, and packs the rest without compression.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes

from solon.errors import InputError
from solon.files.plain_text import excerpt
from solon.host.own_code import PACKAGES

MIB = 2**20
WARN_SHARE = 0.5
"""Of Ray's limit: from here on a warning."""
NAMED = 5
"""Largest paths in a message."""
MOSTLY = 0.8
"""A folder whose content lies for this share in one entry is named by that entry."""
SECRET_FILES = (".env", ".env.*", ".netrc", "auth_token", "*.pem", "id_rsa", "id_ed25519", "credentials.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The files of a folder that are uploaded."""

    folder: Path
    sizes: dict[str, int]
    """Bytes by path relative to the folder."""

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    def holds(self, path: Path) -> bool:
        """Whether this file, or something below this folder, is uploaded."""
        base = self.folder if path.is_relative_to(self.folder) else self.folder.resolve()
        inner = str(path.relative_to(base))
        return inner == "." or inner in self.sizes or any(name.startswith(f"{inner}{os.sep}") for name in self.sizes)

    def largest(self) -> list[tuple[str, int]]:
        """The entries that take most, the largest first."""
        return [self._narrowed(name, size) for name, size in self._below("").most_common(NAMED)]

    def _below(self, folder: str) -> Counter[str]:
        """Bytes of each entry of a folder; its name ends with a separator."""
        found: Counter[str] = Counter()
        for name, size in self.sizes.items():
            if name.startswith(folder):
                first, separator, _ = name[len(folder) :].partition(os.sep)
                found[f"{folder}{first}{separator}"] += size
        return found

    def _narrowed(self, name: str, size: int) -> tuple[str, int]:
        while name.endswith(os.sep):
            ((inner, inner_size),) = self._below(name).most_common(1)
            if inner_size < MOSTLY * size:
                break
            name, size = inner, inner_size
        return name, size


def measure(folder: Path) -> Package:
    """Raises InputError for a folder that cannot be packed."""
    if not folder.is_dir():
        raise InputError(f"--working-dir {folder} is no folder, expected the one that holds the run file")
    if folder.resolve() == Path(folder.anchor):
        raise InputError(f"the folder to upload is {folder}, all of this machine, expected the one that holds the run "
                         "file; start there, or name it: --working-dir")  # fmt: skip
    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            if not os.access(path, os.R_OK):
                raise InputError(f"{path} cannot be read, so the folder cannot be uploaded; exclude it in .rayignore")
            sizes[str(path.relative_to(folder))] = path.stat().st_size

    excludes = [_get_excludes(folder, get_runtime_env_default_excludes())]
    with_gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    try:
        _dir_travel(folder, excludes, add, include_gitignore=with_gitignore, logger=_Silent())
    except (OSError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(
            f"--working-dir {folder} cannot be read ({error}); exclude what cannot be packed in .rayignore"
        ) from None
    return Package(folder=folder, sizes=sizes)


def check_package(package: Package, *, limit: int = GCS_STORAGE_MAX_SIZE) -> list[str]:
    """Warnings. Raises InputError for a folder that Ray would refuse after packing it, and for one whose files take the
    place of Solon's packages. limit: Ray's, in bytes."""
    largest = ", ".join(f"{excerpt(name, longest=120)} {_mib(size)}" for name, size in package.largest())
    takes = f"{package.folder} takes {_mib(package.nbytes)} in {len(package.sizes)} files"
    if package.nbytes >= limit:
        raise InputError(
            f"{takes}, expected less than {_mib(limit)}, which is all that Ray uploads; largest: {largest}; exclude "
            "what the job does not read in .rayignore (as .gitignore), and name models by their path on the cluster"
        )
    found = []
    if package.nbytes >= WARN_SHARE * limit:
        found.append(
            f"{takes}, of which every node of the run gets a copy; largest: {largest}; .rayignore excludes paths"
        )
    secret = [name for name in package.sizes if any(fnmatch(Path(name).name, one) for one in SECRET_FILES)]
    if secret:
        found.append(
            f"{excerpt(', '.join(secret[:NAMED]))} would be readable on the cluster; .rayignore excludes paths"
        )
    _refuse_shadows(package)
    return found


def _refuse_shadows(package: Package) -> None:
    tops = {Path(name).parts[0].removesuffix(".py") for name in package.sizes}
    if shadowing := [name for name in PACKAGES if name in tops]:
        if set(PACKAGES) <= tops:  # a checkout of Solon: its own code
            return
        raise InputError(
            f"the folder {package.folder} holds `{shadowing[0]}`, which would take the place of Solon's package of "
            "that name on the cluster; rename it, or submit another folder"
        )


def _mib(size: float) -> str:
    return f"{size / MIB:.1f} MiB"


class _Silent:
    """In place of Ray's logger."""

    def info(self, *_: object) -> None:
        """Nothing is said."""

    error = warning = info
