"""Files written through libraries are as readable as all others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from learners.core.state import TENSORS, save_state
from solon.host.file_modes import umask, widen


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_umask_is_read_and_files_made_for_the_owner_alone_get_its_mode(mask: int, tmp_path: Path):
    assert umask() == mask
    (tmp_path / "sub").mkdir()
    narrow, other = tmp_path / "sub" / "model.safetensors", tmp_path / "spend.json"
    for file in (narrow, other):
        file.write_text("")
        file.chmod(0o600)
    widen(tmp_path)
    assert (mode(narrow), mode(other)) == (0o666 & ~mask, 0o600)


def test_the_tensors_of_a_learner_are_as_readable_as_its_counters(mask: int, tmp_path: Path):
    save_state(tmp_path, {}, {"steps": 1})
    assert mode(tmp_path / TENSORS) == mode(tmp_path / "learner.json") == 0o666 & ~mask
