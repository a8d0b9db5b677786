"""Loading a model: device, dtype, adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from learners.core.config import LoraConfig
from learners.core.sharding import layers_of
from solon.errors import InputError, loading
from solon.models.facts import EXPERTS


def with_adapters(model: Any, lora: LoraConfig | None) -> Any:
    """The model, wrapped by peft when there is a LoRA configuration; then only the adapters train."""
    if lora is None:
        return model
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    modules: str | list[str] = lora.target_modules if isinstance(lora.target_modules, str) else []
    if not modules:
        # A target may be the output head, which a backbone does not have.
        present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        modules = [name for name in lora.target_modules if name.rpartition(".")[2] in present]
    try:
        return get_peft_model(model, PeftLoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=modules))
    except ValueError as error:
        raise InputError(
            f"learn.lora.target_modules = {lora.target_modules!r} does not fit the model: {error}"
        ) from error


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass.

    Layers do so only in training mode, which turns dropout on: pi would differ from pi_prox at the first update. So
    only the layers themselves are put into training mode, not their submodules, with dropout 0. The model's own
    configuration, which is saved with every checkpoint, stays unchanged.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.eval()
    without_dropout: dict[int, Any] = {}
    for layer in model.modules():
        if not getattr(layer, "gradient_checkpointing", False):
            continue
        layer.training = True
        for name in _dropouts(vars(layer)):
            setattr(layer, name, 0.0)
        config = getattr(layer, "config", None)
        # A model builds its masks from its configuration, which sharing inspects: that one stays.
        if isinstance(layer, GradientCheckpointingLayer) and config is not None and _dropouts(vars(config)):
            if id(config) not in without_dropout:
                without_dropout[id(config)] = copied = copy.deepcopy(config)
                for name in _dropouts(vars(copied)):
                    setattr(copied, name, 0.0)
            layer.config = without_dropout[id(config)]


def _dropouts(attributes: Mapping[str, Any]) -> list[str]:
    """Names of dropout probabilities: `hidden_dropout`, `resid_pdrop`, `dropout`, …"""
    return [name for name, value in attributes.items() if "drop" in name and isinstance(value, float) and value > 0]


def require_divisible(model: str) -> None:
    """Raises InputError for a model that ranks cannot divide, from its configuration alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading(f"the policy {model!r}", remedy="give a Hugging Face directory with config.json"):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    layers_of(skeleton)
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if "dynamic" in str(rope):
        raise InputError(
            f"the policy {model!r} has rotary frequencies that depend on earlier rows (rope_type 'dynamic'), expected "
            "fixed ones, since every rank sees other rows; train it with num_ranks = 1"
        )


@torch.no_grad()
def require_repeatable(model: Any, device: torch.device) -> None:
    """Raises InputError when two forward passes of the same tokens differ: usually dropout is still on."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    ids_BT = torch.arange(16, device=device)[None] % vocabulary
    first, second = (model(input_ids=ids_BT, use_cache=False)[0].float() for _ in range(2))
    gap = float((first - second).abs().max())
    if not gap <= 1e-3 * max(1.0, float(first.abs().max())):
        raise InputError(
            f"the policy computes other numbers for the same tokens the second time (by {gap:.2g}), expected the same: "
            "set its dropout to 0 in config.json, or learn.gradient_checkpointing = false"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the progress bars of loading and saving a model."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_model(model: str, device: torch.device) -> tuple[Any, torch.dtype]:
    """The model in float32, and the dtype of its files. On the device `meta` it has no values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    remedy = "give a Hugging Face directory with config.json and safetensors files"
    with loading(f"the policy {model!r}", remedy=remedy):
        # No pickled weights, and no code from the model: either would run with the user's rights.
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        own = getattr(config, "dtype", None) or torch.float32
        # The fused kernel silently drops Gemma 2's soft cap, and attestation would fail.
        capped = getattr(config, "attn_logit_softcapping", None)
        options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
        if capped:
            options["attn_implementation"] = "eager"
        own = own if isinstance(own, torch.dtype) else getattr(torch, str(own))
        if device.type == "meta":
            options.pop("use_safetensors")
            with device:
                return AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options).eval(), own
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=torch.float32, **options)
        return loaded.to(device).eval(), own


def refuse_experts(model: str) -> None:
    """Raises InputError for a mixture of experts: it cannot be trained here."""
    from transformers import AutoConfig

    try:
        text = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    except Exception:
        return  # reported when the model is loaded
    counts = [getattr(text, key, None) for key in EXPERTS]
    if most := max((count for count in counts if isinstance(count, int) and count > 1), default=0):
        raise InputError(
            f"the policy {model!r} is a mixture of {most} experts, expected a dense model: engines hold experts in "
            "another layout than the files and would keep the old ones after a publication; choose a dense policy "
            "(a judge may have experts)"
        )


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            f"the learner is to run on {name!r}, by learn.num_gpus or learn.device, but torch sees no GPU; check the "
            "driver with nvidia-smi and that torch is a CUDA build, or set learn.num_gpus = 0"
        )
    return torch.device(name)
