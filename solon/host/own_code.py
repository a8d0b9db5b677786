"""Controls which code runs: Solon's packages lie in one folder, and nothing is imported from the current folder.

Python puts the current folder first for `python -m` and `python -c`, and so for many processes that libraries start.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import solon
from solon.errors import InputError
from solon.host.submitted_job import is_working_copy

PACKAGES = ("solon", "actors", "learners", "serve_apps", "cluster", "compression", "nursery", "english")
"""Solon's packages."""


def root() -> Path:
    """The folder of this process's Solon."""
    return Path(solon.__file__).resolve().parents[1]


def protect() -> None:
    """Make child processes import the same Solon, and nothing from the current folder.

    Raises InputError with the name of the package when one of Solon's is found elsewhere.
    """
    os.environ.update(_safe_variables())
    if complaint := shadow(found_packages(), home=root()):
        raise InputError(complaint)


def module_command(module: str, *arguments: str) -> list[str]:
    """The command of a Solon module in its own process; start it with `child_environment`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(**extra: str) -> dict[str, str]:
    """The environment of a Python process that imports the same Solon as this one."""
    return {**os.environ, **_safe_variables(), **extra}


def _safe_variables() -> dict[str, str]:
    # An empty entry, as in PYTHONPATH=$UNSET:/code, means the current folder.
    named = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    folders = [folder for folder in import_folders() if folder not in named]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([*folders, *named])}


def import_folders() -> list[str]:
    """Folders that another Python process needs on its import path to find this Solon; empty when it is installed."""
    installed = {Path(folder).resolve() for folder in (*site.getsitepackages(), site.getusersitepackages())}
    return [] if root() in installed else [str(root())]


def found_packages() -> dict[str, str]:
    """Where this process finds each of Solon's packages, imported or not: a folder or a file; empty: not found."""
    return {name: _found(name) for name in PACKAGES}


def shadow(found: Mapping[str, str], *, home: Path | None = None, where: str = "") -> str:
    """The problem with the packages' locations; empty when they lie in one folder.

    home: expected location; by default that of most packages. where: the machine, for the message.
    """
    places = {name: Path(place) for name, place in found.items() if place}
    prefix = f"{where}: " if where else ""
    if not places:
        return f"{prefix}Solon is not installed there; install the same version as here on every machine"
    expected = home or Counter(place.parent for place in places.values()).most_common(1)[0][0]
    for name in found:
        if name not in places:
            return f"{prefix}Solon's package {name} is missing in {expected}; install Solon again"
        if places[name] not in (expected / name, (expected / name).resolve()):
            return f"{prefix}{_describe(name, places[name], expected)}"
    return ""


def _describe(name: str, place: Path, expected: Path) -> str:
    folder = place.parent
    shown = f"`{place.name}/`" if not place.suffix else f"`{place.name}`"
    if is_working_copy(folder):
        what, remedy = f"the submitted working directory (here {folder})", "rename it there, or submit another folder"
    else:
        what, remedy = f"the folder {folder}", "rename it, or take the folder out of PYTHONPATH"
    return f"{what} holds {shown}, which shadows Solon's package {name} in {expected}; {remedy}"


def _found(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module created without a spec
        return ""
    if spec is None:
        return ""
    places = [*(spec.submodule_search_locations or ()), spec.origin or ""]
    return os.path.realpath(places[0]) if places[0] else ""
