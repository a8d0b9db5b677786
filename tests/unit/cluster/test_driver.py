"""The end of a run whose directory is removed, whenever its records notice."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cluster.driver as module
from cluster.driver import Driver
from solon.errors import RunFailedError
from solon.runs.directory import RunDirectory


class Session:
    """What the driver uses of a session. notices: when the recorder finds its folder gone."""

    def __init__(self, directory: RunDirectory, notices: str) -> None:
        self.directory, self.notices = directory, notices
        self.stop = asyncio.Event()
        self.signals = SimpleNamespace(interrupted=False, may_finish=True)
        self.totals = SimpleNamespace(end=lambda: None, steps=3)
        self.view = SimpleNamespace(ended=lambda summary, path: None)
        self.start = SimpleNamespace(directory=None)

    def open_records(self, *, on_failure: Any) -> None:
        self.failed = on_failure

    async def launch(self) -> None:
        """Nothing to start."""

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *error: Any) -> None:
        if self.notices == "ending":
            self.failed()
        await asyncio.sleep(0.01)  # records and workers are closed

    async def run(self, _: Any) -> bool:
        shutil.rmtree(self.directory.path)
        if self.notices == "training":
            self.failed()
            await asyncio.sleep(60)
        self.directory.require_here()
        return True


@pytest.mark.parametrize("notices", ["training", "ending", ""])
async def test_a_run_whose_directory_is_removed_fails_with_that_cause_whenever_it_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: str
):
    async def summarise(session: Any, status: str, failure: Exception | None) -> dict[str, Any]:
        return {"status": status, "failure": f"{type(failure).__name__}: {failure}", "steps": 3, "eval": {}}

    monkeypatch.setattr(module, "summarise", summarise)
    directory = RunDirectory.create(tmp_path, "run", default="run")
    session: Any = Session(directory, notices)
    with pytest.raises(RunFailedError, match=r"is gone|removed|moved"):
        await Driver(session, [session]).drive()
