"""`english:` names denote a real pretrained model, its judges, and the English world around them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping
from typing import Any

from solon.host.user_folders import cache_folder, unusable

PACKAGED = ("policy", "gemma")
"""Models from packages: fetched and imported, not grown."""
WRITTEN = ("constitution", "train_prompts", "heldout_prompts", "gold_prompts")
GROWN = ("judge", "judge_fp")
"""Taught on this machine, which takes minutes."""
SETS = ("attacks", "lookalikes", "truth")
"""Prompts for evaluation alone."""
NAMES = (*PACKAGED, *GROWN, *WRITTEN, *SETS)


def english_paths(names: Collection[str], *, progress: bool) -> dict[str, str]:
    """Paths by name, without their prefix. Fetches, writes or grows only what these names need."""
    folder = cache_folder()
    found: dict[str, str] = {}
    try:
        from english.packages import MODELS, packaged

        found |= {name: str(packaged(MODELS[name], progress=progress)) for name in PACKAGED if name in names}
        # Loaded by name: the module brings in the libraries that growing needs.
        if any(name in WRITTEN for name in names):
            world = importlib.import_module("english.grow").world(folder)
            found |= {name: str(getattr(world, name)) for name in WRITTEN if name in names}
        if any(name in SETS for name in names):
            written = importlib.import_module("english.sets.build").sets(folder)
            found |= {name: str(path) for name, path in written.items() if name in names}
        if any(name in GROWN for name in names):
            grown = importlib.import_module("english.grow").grow(folder, progress=progress)
            found |= {name: str(getattr(grown, name)) for name in GROWN if name in names}
            if progress:
                for name in found.keys() & set(GROWN):
                    print(quality(name, grown.report), file=sys.stderr)
    except OSError as error:
        raise unusable(folder, error, "XDG_CACHE_HOME") from error
    return found


def quality(name: str, report: Mapping[str, Any]) -> str:
    """One line about a judge, from the report that was written when it was grown."""
    found = report[name]
    pairs, single = (found["agreement"].get(task, float("nan")) for task in ("pairwise", "pointwise"))
    return (
        f"english:{name} agrees with the programs on {pairs:.0%} of held-out pairs and {single:.0%} of single answers, "
        f"{found['per_second']:.0f} verdicts/s when it was grown"
    )
