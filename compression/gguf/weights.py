"""The network of a GGUF file: Transformers' configuration and dequantised weights, every tensor accounted for."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from typing import Any

from compression.gguf.container import GgufFile
from compression.gguf.positions import DIVISORS, scaled_positions
from compression.gguf.special_tokens import SpecialTokens
from solon.errors import InputError, short

MERGED = ("_exps.", "_shexp.")
"""Parts of names of experts' tensors, which become parts of larger ones."""


def read_network(file: GgufFile, dtype: Any, tokens: SpecialTokens, ids: Mapping[str, int]) -> Any:
    """The model in this dtype, in evaluation mode. ids: of special tokens, by text.

    Raises InputError when the file lacks a weight or has one that the architecture does not.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with redirect_stderr(io.StringIO()):  # a progress bar that no setting hides
        settings = AutoConfig.from_pretrained(str(file.path.parent), gguf_file=file.path.name, trust_remote_code=False)
    _settle(settings, file, tokens, ids)
    settings.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    with redirect_stderr(io.StringIO()):
        read = load_gguf_checkpoint(str(file.path), return_tensors=True, model_to_load=model, torch_dtype=dtype)
    tensors = read["tensors"]
    _require_all(file, model, tensors)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    model.requires_grad_(False)
    model.generation_config = GenerationConfig(
        eos_token_id=list(tokens.stops) if len(tokens.stops) > 1 else tokens.stops[0],
        pad_token_id=ids[tokens.pad],
        bos_token_id=None if tokens.bos is None else ids[tokens.bos],
    )
    return model.eval()


def _settle(settings: Any, file: GgufFile, tokens: SpecialTokens, ids: Mapping[str, int]) -> None:
    """Complete the configuration in place."""
    for name in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        settings.__dict__.pop(name, None)
    settings.vocab_size = file.rows
    settings.eos_token_id = tokens.stops[0]
    settings.pad_token_id = ids[tokens.pad]
    settings.bos_token_id = None if tokens.bos is None else ids[tokens.bos]
    settings.unk_token_id = None
    width = file.number("attention.key_length")
    if width and getattr(settings, "head_dim", None) and not hasattr(settings, "global_head_dim"):
        settings.head_dim = int(width)  # Transformers' table leaves it out for some architectures
    base = file.number("rope.freq_base") or 10_000.0
    if scaling := scaled_positions(file, float(base)):
        settings.rope_parameters = {**(settings.rope_parameters or {}), **scaling}


def _require_all(file: GgufFile, model: Any, tensors: Mapping[str, Any]) -> None:
    """Transformers would draw a missing weight at random and leave out an unknown one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise InputError(
            f"{file.path} lacks {len(missing)} of {len(shapes)} weights of the architecture {file.architecture}: "
            f"{short(missing)}; fetch or convert the file again"
        )
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(
                f"{file.path}: {name} has the shape {tuple(tensors[name].shape)}, expected {shape} by the file's "
                "metadata; convert the file again"
            )
    for name in shapes:
        if not tensors[name].isfinite().all() or (len(shapes[name]) > 1 and not tensors[name].any()):
            raise InputError(
                f"{file.path}: {name} is all zeros, or holds numbers that are not finite, expected weights; fetch the "
                "file again"
            )
    counted = [name for name in file.tensors if name != DIVISORS and not any(part in name for part in MERGED)]
    if not any(part in name for name in file.tensors for part in MERGED) and len(counted) > len(tensors):
        raise InputError(
            f"{file.path} has {len(counted)} tensors, of which the architecture {file.architecture} of Transformers "
            f"takes {len(tensors)}; give a Hugging Face directory of the model instead"
        )
