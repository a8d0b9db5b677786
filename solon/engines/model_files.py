"""The files beside the weights of a saved model: unchanged tokenizer files, and a generation config that can be saved.

Transformers reads a contradictory `generation_config.json` with a warning but refuses to write it. Many published
models have one, so every place that saves a model repairs it first.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
)
"""The tokenizer's files, in every format that Transformers reads."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_FIRST = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")
"""Settings that determine whether others are valid."""


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer of one model directory into another, byte for byte; returns the names. Code is not copied."""
    found = {file for pattern in COMPANIONS for file in source.glob(pattern)}
    copied = []
    for file in sorted(found):
        if not file.is_file() or file.suffix == ".py":
            continue
        name = file.relative_to(source)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
        copied.append(str(name))
    return copied


def repair_generation_config(model: Any) -> list[str]:
    """Make `model.generation_config` one that Transformers saves; returns the dropped settings.

    Sampling parameters in a file without `do_sample` mean that the model should be sampled: `do_sample` is turned on
    and their values stay. Other invalid settings are dropped. A valid config is not changed.
    """
    config = getattr(model, "generation_config", None)
    if config is None or _is_valid(config):
        return []
    wanted = config.to_diff_dict()
    if config.do_sample is None and config.temperature != 0 and any(wanted.get(name) is not None for name in _SAMPLING):
        wanted["do_sample"] = True
    repaired = type(config)()
    dropped: list[str] = []
    for name in sorted(wanted, key=lambda name: (name not in _FIRST, name)):
        before = getattr(repaired, name, None)
        setattr(repaired, name, wanted[name])
        if not _is_valid(repaired):
            dropped.append(f"{name} = {wanted[name]!r}")
            if hasattr(type(config)(), name):
                setattr(repaired, name, before)
            else:
                delattr(repaired, name)
    model.generation_config = repaired
    return dropped


def warn_of_dropped(dropped: list[str]) -> None:
    """Warn of the settings that `repair_generation_config` dropped."""
    if dropped:
        settings = ", ".join(dropped)
        warnings.warn(f"generation_config.json is saved without {settings}: Transformers refuses it", stacklevel=2)


def _is_valid(config: Any) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True
