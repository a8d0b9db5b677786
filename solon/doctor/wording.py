"""Lists, durations and times in words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any


def some(items: Sequence[Any]) -> str:
    shown = ", ".join(str(item) for item in items[:10])
    return shown if len(items) <= 10 else f"{shown} and {len(items) - 10} more"


def span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def clock(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
