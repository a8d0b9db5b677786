"""`english:` names denote a real pretrained model, its judges, and the English world around them."""

from __future__ import annotations

import importlib
from collections.abc import Collection

from solon.host.user_folders import cache_folder, unusable

PACKAGED = ("policy", "gemma")
"""Models from packages: fetched and imported, not grown."""
WRITTEN = ("constitution", "train_prompts", "heldout_prompts", "gold_prompts")
GROWN = ("judge", "judge_fp")
"""Taught on this machine, which takes minutes."""
NAMES = (*PACKAGED, *GROWN, *WRITTEN)


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
        if any(name in GROWN for name in names):
            grown = importlib.import_module("english.grow").grow(folder, progress=progress)
            found |= {name: str(getattr(grown, name)) for name in GROWN if name in names}
    except OSError as error:
        raise unusable(folder, error, "XDG_CACHE_HOME") from error
    return found
