"""Scaled rotary positions of a GGUF file, which Transformers does not read from it.

Llama 3.1 and later store the scaling as a tensor of divisors, one for each pair of a head's dimensions; others name a
kind and a factor. What cannot be expressed exactly is refused: all log-probs would be wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compression.gguf.container import GgufFile
from solon.errors import InputError, short

DIVISORS = "rope_freqs.weight"
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192
"""Of Llama 3's rule: in original contexts per wavelength, and the original context."""


def scaled_positions(file: GgufFile, base: float) -> dict[str, Any]:
    """Transformers' `rope_parameters` of the scaling, to be merged with `rope_theta`; empty: positions are not scaled.

    base: the base of the frequencies. Raises InputError for a kind that is not known here.
    """
    kind = file.number("rope.scaling.type")
    if DIVISORS in file.tensors:
        return _llama3(file, base)
    if kind in (None, "none"):
        return {}
    factor = file.number("rope.scaling.factor")
    if kind == "linear" and isinstance(factor, float | int) and file.architecture != "gemma3":
        return {"rope_type": "linear", "factor": float(factor)} if factor != 1 else {}
    raise InputError(
        f"{file.path} scales positions by the rule {short(kind)}, expected none, linear or that of Llama 3; give a "
        "Hugging Face directory of the model instead"
    )


def _llama3(file: GgufFile, base: float) -> dict[str, Any]:
    divisors = np.asarray(file.tensors[DIVISORS].data, np.float64).ravel()
    factor, original = float(divisors.max()), int(file.number("rope.scaling.original_context_length") or ORIGINAL)
    if factor == 1:
        return {}
    wavelengths = 2 * math.pi * base ** (np.arange(len(divisors)) / len(divisors))
    smooth = np.clip((original / wavelengths - LOW) / (HIGH - LOW), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-3):
        raise InputError(
            f"{file.path} scales positions by divisors of its own ({DIVISORS}), expected those of Llama 3; give a "
            "Hugging Face directory of the model instead"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    }
