"""A whole run for tests of its tables and pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.report.run_folders import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "r")
