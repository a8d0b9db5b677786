"""JSON that every reader accepts: NaN and infinities, which JSON lacks, become null."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Always valid JSON; numpy values become numbers and lists, values of other types become text.

    >>> json_text({"gap": float("nan"), "step": 3})
    '{"gap": null, "step": 3}'
    """
    try:
        return json.dumps(value, indent=indent, default=_foreign, allow_nan=False)
    except ValueError:  # rare, so the slow way is taken only here
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines, one object each. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _foreign(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if value is None or isinstance(value, str | int) else _finite(_foreign(value))
