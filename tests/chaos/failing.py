"""Workers that fail internally on request: the engine's or the learner's library raises, once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from solon.engines.failures import computing
from tests.chaos.cluster_of_our_own import FAILURES


def is_told_to_fail(role: str) -> bool:
    """Whether this call must fail; one call among all workers of a role does."""
    if not (folder := os.environ.get(FAILURES)):
        return False
    try:
        (Path(folder) / role).unlink()
    except FileNotFoundError:
        return False
    return True


def fail_if_told(role: str) -> None:
    """The error of an engine whose library has failed."""
    if is_told_to_fail(role):
        with computing(f"a {role}", "computing"):
            fail_like_a_device()


def fail_like_a_device() -> None:
    """The error of torch when a kernel fails."""
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def with_failures(llm: Any, role: str) -> Any:
    """The same vLLM, whose engine core raises on request."""
    get_output = llm.engine_core.get_output

    def fails() -> Any:
        if is_told_to_fail(role):
            fail_like_a_device()
        return get_output()

    llm.engine_core.get_output = fails
    return llm
