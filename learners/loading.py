"""How a model comes into memory: which device, which dtype, with adapters or without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from learners.config import LoraConfig
from solon.errors import InputError
from solon.model_facts import EXPERTS


def with_adapters(model: Any, lora: LoraConfig | None) -> Any:
    """The model, wrapped by peft when there is a LoRA configuration; only the adapters train then."""
    if lora is None:
        return model
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    modules: str | list[str] = lora.target_modules if isinstance(lora.target_modules, str) else []
    if not modules:
        # A name may be the output head's, which a backbone has not got.
        present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        modules = [name for name in lora.target_modules if name.rpartition(".")[2] in present]
    try:
        return get_peft_model(model, PeftLoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=modules))
    except ValueError as error:
        raise InputError(
            f"learn.lora.target_modules = {lora.target_modules!r} does not fit the model: {error}"
        ) from error


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass. It needs training mode, which turns dropout on: so dropout
    goes, or pi would differ from pi_prox at the first update."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


@contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving a model print progress bars that say nothing here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_model(model: str, device: torch.device) -> tuple[Any, torch.dtype]:
    """The model in float32, and the dtype its files have."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        # Weights without pickles, and no code that came with them: either would run as the user.
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        own = getattr(config, "dtype", None) or torch.float32
        # The fused kernel drops Gemma 2's soft cap without a word, and attestation would fail.
        capped = getattr(config, "attn_logit_softcapping", None)
        options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
        if capped:
            options["attn_implementation"] = "eager"
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the policy {model!r} cannot be loaded ({error}); "
            "give a Hugging Face directory with config.json and safetensors files"
        ) from error
    return loaded.to(device).eval(), own if isinstance(own, torch.dtype) else getattr(torch, str(own))


def refuse_experts(model: str) -> None:
    """Raises InputError for a mixture of experts: it cannot be trained here."""
    from transformers import AutoConfig

    try:
        text = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    except (OSError, ValueError):
        return  # told by whoever loads it
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
        raise InputError(f"learn.device = {name!r}, but torch sees no GPU; set device = 'auto' or 'cpu'")
    return torch.device(name)
