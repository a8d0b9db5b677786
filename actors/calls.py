"""What the shells share: errors that come back as they were raised, and resources by name."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import ray

from solon.errors import RunFailedError

T = TypeVar("T")


def open_box(box: list[ray.ObjectRef]) -> Any:
    """The payload in a box; fetches it when it lies on another node."""
    return ray.get(box[0], timeout=60)


async def call(result: Awaitable[T], *, who: str) -> T:
    """Await a remote result; an error of the worker's own code is raised as it was there, a dead worker as
    RunFailedError."""
    try:
        return await result
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception):
            raise cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise RunFailedError(f"{who} died: {_first_line(error)}; its log is in the Ray dashboard") from None
    except ray.exceptions.ObjectLostError as error:
        raise RunFailedError(f"{who}: a payload was lost: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] if lines else type(error).__name__
