"""Whole runs in child processes, as a person starts them. The models are grown once for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NURSERY = ROOT / "examples" / "nursery.toml"


@dataclass(frozen=True)
class Run:
    """A finished `solon` process and the directory it wrote."""

    returncode: int
    output: str
    directory: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.directory / "summary.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "events.jsonl").read_text().splitlines()]

    def table(self, name: str) -> list[dict[str, Any]]:
        """All rows of `rollouts` or `labels`."""
        import pyarrow.parquet as pq

        parts = sorted((self.directory / name).glob("*.parquet"))
        return [row for part in parts for row in pq.read_table(part).to_pylist()]


def solon_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "solon", *arguments]


def environment(**extra: str) -> dict[str, str]:
    """Of a child: the project importable wherever it is started."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", **extra}


def run_solon(tmp_path: Path, name: str, *arguments: str, timeout: float = 400) -> Run:
    """`solon train examples/nursery.toml --name NAME ...` in a folder of its own."""
    done = subprocess.run(
        solon_command("train", str(NURSERY), "--name", name, *arguments),
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Run(done.returncode, done.stdout, tmp_path / "runs" / name)


@pytest.fixture(scope="session")
def nursery() -> Any:
    """The grown models; the first test that asks for them waits for the growing."""
    from nursery.grow import grow

    return grow(progress=False)
