"""The summary of a process that ended before it took over the run that it was to resume."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_file import RunFile
from cluster.driver import Driver
from cluster.session import RunSession
from cluster.start import Start
from solon.cli.view import SilentView
from solon.doctor.diagnosis import diagnose
from solon.doctor.facts import look
from solon.runs.directory import RunDirectory
from tests.unit.doctor.test_doctor import NOW, end, make_run
from tests.unit.run_files import make_run as make_run_file


class Waiting(RunSession):
    """A session whose workers find no place, and which is asked to stop then."""

    async def launch(self) -> None:
        self.signals.interrupted, self.signals.received = True, "SIGTERM"
        raise asyncio.CancelledError


@pytest.mark.parametrize("was", ["stopped", "killed"])
async def test_a_resumed_run_that_is_stopped_before_it_trains_keeps_the_numbers_of_what_it_trained(
    tmp_path: Path, was: str
):
    former = make_run(tmp_path)
    if was == "stopped":
        end(former, "stopped", admitted=8, held=2, watch={"last": 1})
    else:
        former.close()
    run = RunFile.load(make_run_file(tmp_path))
    directory = RunDirectory.reopen(former.path)
    config = json.loads((former.path / "config.json").read_text())
    directory.write_json("config.json", config | {"started": NOW})
    inputs: Any = SimpleNamespace(constitution=None, refused={}, counts={})
    session = Waiting(run, inputs, directory, SilentView(), start=Start(directory=former.path), resume="again")
    summary = await Driver(session, []).drive()
    directory.close()
    assert summary["status"] == "stopped"
    assert summary["groups"] == {"admitted": 6, "committed": 6, "dropped": 0, "held": 0}
    assert summary.get("watch") == ({"last": 1} if was == "stopped" else None)
    assert json.loads((former.path / "summary.json").read_text())["groups"]["committed"] == 6
    found = diagnose(replace(look(former.path)))
    assert (found.status, found.findings.get("numbers")) == ("stopped", None)
