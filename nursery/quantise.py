"""The judge in int8: weights per channel, activations per token, written by llm-compressor."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor, nn

from nursery.model import TinyModel, shape_of
from solon.host.file_modes import widen

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def prepare() -> None:
    """Import what quantising needs; it takes longer than quantising does."""
    import llmcompressor.modifiers.quantization  # noqa: F401


def to_int8(source: Path, target: Path) -> None:
    """Write a W8A8 copy of a model, in the compressed-tensors format."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    # The head is read at one token in a hundred: eight bits would save nothing there.
    recipe = QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])
    oneshot(model=model, recipe=recipe)
    model.save_pretrained(target, save_compressed=True)
    widen(target)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)


def load_int8(directory: Path) -> TinyModel:
    """The int8 model as integer kernels compute it: weights restored from their codes, every input of a
    quantised layer rounded to its own 8-bit grid, token by token."""
    from safetensors.torch import load_file

    tensors = load_file(str(directory / "model.safetensors"))
    scales = {name.removesuffix("_scale"): scale for name, scale in tensors.items() if name.endswith(".weight_scale")}
    restored = {
        name: tensor.float() * scales[name].float() if name in scales else tensor.float()
        for name, tensor in tensors.items()
        if name not in {f"{quantised}_scale" for quantised in scales}
    }
    model = TinyModel(shape_of(directory))
    model.load_state_dict(restored)
    for name, module in model.named_modules():
        if f"{name}.weight" in scales:
            module.register_forward_pre_hook(_round_input)
    return model


def _round_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (x,) = inputs
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-8)
    return ((x / scale).round().clamp(-128, 127) * scale,)
