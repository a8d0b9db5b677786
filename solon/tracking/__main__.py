"""`python -P -m solon.tracking RUN --mlflow URI`: needs the standard library and the tracker's package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from solon.errors import InputError, RunFailedError
from solon.tracking.sinks import SINKS, track


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m solon.tracking", description=__doc__)
    parser.add_argument("run", type=Path)
    for name in SINKS:
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--follow", action="store_true", help="until the run has ended")
    options = parser.parse_args(arguments)
    places = {name: getattr(options, name) for name in SINKS if getattr(options, name)}
    if not places:
        parser.error("name a tracker, as in --tensorboard DIR")
    try:
        track(options.run, places, follow=options.follow, say=print)
    except (InputError, RunFailedError) as error:
        print(f"solon.tracking: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
