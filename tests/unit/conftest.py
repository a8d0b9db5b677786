"""What several files of unit tests share."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest


@pytest.fixture
def lost_errors() -> Any:
    """What the event loop complains about while a test runs: exceptions that nobody retrieved."""
    found: list[Any] = []

    def watch() -> list[Any]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
        return found

    yield watch
    gc.collect(1)
    assert found == []
