"""A folder in which every importable name is a trap that leaves a mark when it runs."""

from __future__ import annotations

import os
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from solon.host.own_code import PACKAGES

STARTUP = ("sitecustomize", "usercustomize")
TRAP = "import os, sys\nwith open({mark!r}, 'a') as file: file.write(f'{{__name__}} {{os.getpid()}} {{sys.argv}}\\n')\n"


class TrapFolder:
    """Modules and packages of every name that Python or a library of this environment might look for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._mark = folder.parent / f"{folder.name}.ran"
        folder.mkdir()
        text = TRAP.format(mark=str(self._mark))
        names = {*sys.stdlib_module_names, *packages_distributions(), *STARTUP, *PACKAGES, "tests", "benchmarks"}
        for name in names:
            if name.isidentifier():
                (folder / f"{name}.py").write_text(text)
        for name in ("solon", "actors", "safetensors", "multiprocessing", "encodings"):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(text)

    @property
    def ran(self) -> list[str]:
        """What ran, with the process and its arguments; first one first."""
        return self._mark.read_text().splitlines() if self._mark.exists() else []


def plain_environment(root: Path, **extra: str) -> dict[str, str]:
    """The environment of a user who has installed Solon and set no variable of Python's."""
    named = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    return {**named, "PYTHONPATH": str(root), **extra}
