"""Calls a function of a stage in a process of its own: `python -m cluster.align.worker MODULE:FUNCTION ARGUMENTS OUT`.

The arguments are a JSON file, the result is written to another. An InputError ends with code 2, a RunFailedError with
code 1; their messages are in `OUT` too.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from safetensors import SafetensorError

from solon.errors import InputError, RunFailedError


def main(target: str, arguments: Path, out: Path) -> int:
    """The exit code."""
    module, _, function = target.partition(":")
    code, result = 0, {}
    try:
        result = getattr(importlib.import_module(module), function)(json.loads(arguments.read_text(encoding="utf-8")))
    except (InputError, RunFailedError) as error:
        code, result = (2 if isinstance(error, InputError) else 1), {"failure": str(error)}
    except (OSError, SafetensorError) as error:  # a full disk, most often
        code, result = 1, {"failure": f"{error}; free space or change permissions, and start again"}
    out.write_text(json.dumps(result), encoding="utf-8")
    return code


if __name__ == "__main__":
    ended = main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # closing the large libraries takes seconds
