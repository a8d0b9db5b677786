"""The stages of a run: one file each, found in this folder.

Start with `base`: a stage is a section of a pipeline file with `async def run(session)`. The present stages are
`evaluate`, `audit` and `rlaif`. A new stage is one new file here; pipeline files name it as `type = "..."`.
May import: everything below, when a stage runs; no Ray when a file is checked.
"""

from __future__ import annotations

import sys

from cluster.config.registry import classes_in
from cluster.stages.base import Stage


def known_stages() -> dict[str, type[Stage]]:
    """The stages in this folder, by type."""
    return classes_in(sys.modules[__name__], Stage, name="kind")  # type: ignore[type-abstract]
