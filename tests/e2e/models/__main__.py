"""Run the matrix and write its measurements.

python -m tests.e2e.models --write docs/models.md --json runs/models.json

An interrupted run continues from the numbers that it wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from solon.errors import InputError
from tests.e2e.models.page import render, setting
from tests.e2e.models.refusals import MATRIX, refusal_of
from tests.e2e.models.stages import STAGES
from tests.e2e.models.subject import Subject


def measure(name: str, folder: Path) -> dict[str, Any]:
    """A cell for each stage: a value and whether it holds, or the reason of an expected refusal."""
    subject, cells = Subject(name, folder), {}
    try:
        for stage in STAGES:
            refusal = refusal_of(name, stage.name)
            try:
                value = stage.measure(subject)
            except InputError:
                if refusal is None:
                    raise
                cells[stage.name] = {"refused": refusal.reason}
            else:
                if refusal is not None:
                    raise RuntimeError(f"{stage.name} of {name} gave {value}, expected a refusal")
                cells[stage.name] = {"value": value, "holds": value <= stage.bound}
    finally:
        subject.close()
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.models", description=__doc__)
    parser.add_argument("--write", type=Path, help="the page")
    parser.add_argument("--json", type=Path, help="the numbers")
    arguments = parser.parse_args()
    results: dict[str, Any] = {**setting(), "cells": {}}
    if arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text(encoding="utf-8"))
        if before["commit"] == results["commit"]:
            results = before
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in MATRIX if name not in results["cells"]):
            results["cells"][name] = measure(name, Path(folder))
            print(name, json.dumps(results["cells"][name]), flush=True)
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if arguments.write:
        arguments.write.write_text(render(results), encoding="utf-8")
    return 0 if all(cell.get("holds", True) for row in results["cells"].values() for cell in row.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
