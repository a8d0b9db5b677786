"""The kinds of stages of an alignment: one file each, found in this folder."""

from __future__ import annotations

import sys

from cluster.align.base import AlignStage
from cluster.config.registry import classes_in


def known_stages() -> dict[str, type[AlignStage]]:
    """The kinds in this folder, by `type`."""
    return classes_in(sys.modules[__name__], AlignStage, name="kind")  # type: ignore[type-abstract]
