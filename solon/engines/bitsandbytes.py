"""Quantisation during loading, for the Transformers engine: bitsandbytes needs no quantised file.

It loads anywhere and saves memory, but judges slowly.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from solon.engines.base import EngineConfig
from solon.engines.checkpoint import is_quantised
from solon.errors import InputError

if TYPE_CHECKING:
    import torch


def bitsandbytes_options(config: EngineConfig, dtype: str, device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` that quantise the weights. Raises InputError if that is not possible."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"quantization = {config.quantization!r} needs bitsandbytes, which is not installed; install it with "
            '`pip install solon[bnb]`, or set `quantization = "none"`'
        )
    if is_quantised(config):
        raise InputError(
            f"{config.model!r} is quantised already, expected a model that is not because quantization = "
            f'{config.quantization!r}; set `quantization = "none"`, or point at the original'
        )
    from transformers import BitsAndBytesConfig

    # bitsandbytes warns at every multiplication that inputs are cast to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if config.quantization == "bnb_int8":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        # `auto` is the checkpoint's own dtype, unknown here; every GPU that runs NF4 computes in bfloat16.
        compute = "bfloat16" if dtype == "auto" else dtype
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    return {"quantization_config": settings, "device_map": {"": device}}
