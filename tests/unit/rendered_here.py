"""Prompts rendered in the process of the tests: a process for each check would import its libraries again."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

ONE_AT_A_TIME = threading.Lock()


class RenderedHere:
    """In place of the process that `solon.pipeline.prompt_screen` starts for a job."""

    returncode = 0

    def __init__(self, job: Path) -> None:
        from solon.engines import screening

        said = io.StringIO()
        with ONE_AT_A_TIME, pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            patch.setattr(sys, "argv", ["screening", str(job)])
            patch.setattr(screening, "_limit", lambda size: None)
            patch.setattr(screening, "load_tokenizer", _load_tokenizer)
            screening.main()
        self._said = said.getvalue()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        return self._said, ""

    def poll(self) -> int:
        return self.returncode


def _load_tokenizer(job: dict[str, Any]) -> Any:
    """That of `screening`, which keeps torch out of its own process."""
    from solon.engines.chat_settings import ChatSettings
    from solon.engines.tokens import ChatTokenizer

    chat = ChatSettings(**job.get("chat", {}))
    return ChatTokenizer.load(job["model"], trust_remote_code=job["trust_remote_code"], settings=chat)
