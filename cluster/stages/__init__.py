"""The stages that a run can have: one file each, found by being in this folder.

Start with `base`: a stage is a part of a pipeline file and `async def run(session)`. `evaluate`, `audit` and `rlaif`
are today's. A new stage is one new file here; pipeline files name it as `type = "..."`.
May know: everything below, when a stage runs; no Ray when a file is checked.
"""

from __future__ import annotations

import sys

from cluster.config.registry import classes_in
from cluster.stages.base import Stage


def known_stages() -> dict[str, type[Stage]]:
    """The stages of this folder, by type."""
    return classes_in(sys.modules[__name__], Stage, name="kind")
