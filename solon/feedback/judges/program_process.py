"""Calls a person's functions: `python -m solon.feedback.judges.program_process`.

Reads JSON lines on standard input: first `{"programs": {principle: [file, function]}}`, then calls
`{"program": principle, "messages": [...], "answer": "..."}`. Answers each with one line on what was standard output:
`{"value": 1.5}` or `{"error": "ValueError: ..."}`. What the functions print goes to standard error.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LONGEST_ERROR = 300


def main() -> None:
    """Until standard input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(reply: Mapping[str, Any]) -> None:
        out.write(json.dumps(reply) + "\n")
        out.flush()

    try:
        functions = _load(json.loads(sys.stdin.readline())["programs"])
    except BaseException as error:
        say({"error": _said(error)})
        return
    say({"value": 0.0})
    for line in sys.stdin:
        call = json.loads(line)
        try:
            value = functions[call["program"]](call["messages"], call["answer"])
            say(_reply(value))
        except BaseException as error:  # also SystemExit: a person's function ends no run
            say({"error": _said(error)})


def _load(programs: Mapping[str, tuple[str, str]]) -> dict[str, Callable[..., Any]]:
    modules: dict[str, Any] = {}
    for file, _ in programs.values():
        if file not in modules:
            sys.path.insert(0, str(Path(file).parent))  # helpers beside the file
            spec = importlib.util.spec_from_file_location(f"program_{len(modules)}_{Path(file).stem}", file)
            assert spec is not None
            assert spec.loader is not None
            modules[file] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[file])
    return {principle: getattr(modules[file], function) for principle, (file, function) in programs.items()}


def _reply(value: Any) -> dict[str, Any]:
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):  # also NumPy's
        return {"value": bool(value)}
    if str(getattr(value, "dtype", "")) in ("bool", "torch.bool") and getattr(value, "shape", None) == ():
        return {"value": bool(value)}
    try:
        number = float(value) if not isinstance(value, str | bytes) else math.nan
    except Exception:
        number = math.nan
    if not math.isfinite(number):
        return {"invalid": f"returned {value!r}"[:LONGEST_ERROR]}
    return {"value": number}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:LONGEST_ERROR]


if __name__ == "__main__":
    main()
