"""Fixtures that several files of unit tests share."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.rendered_here import RenderedHere

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A file of scripts/ as a module: `script("scan")`. Scripts are part of no package."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"house_{name}", SCRIPTS / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def lost_errors() -> Any:
    """Complaints of the event loop during a test: exceptions that were never retrieved."""
    found: list[Any] = []

    def watch() -> list[Any]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
        return found

    yield watch
    gc.collect(1)
    assert found == []


@pytest.fixture(autouse=True)
def _import_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the variables that commands set for their child processes."""
    for name in ("PYTHONSAFEPATH", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture
def own_process() -> None:
    """The test is about the process that renders prompts."""


@pytest.fixture(autouse=True)
def _prompts_are_rendered_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "own_process" not in request.fixturenames:
        monkeypatch.setattr("solon.pipeline.prompt_screen._start", RenderedHere)
