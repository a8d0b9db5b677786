"""Loads a Transformers model for an engine and finds its live parameters."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from typing import TYPE_CHECKING, Any

from solon.engines.base import EngineConfig
from solon.engines.bitsandbytes import bitsandbytes_options
from solon.engines.checkpoint import is_quantised, model_settings
from solon.errors import AttestationError, InputError
from solon.records import Weights

if TYPE_CHECKING:
    import torch


def load_model(config: EngineConfig, device: torch.device) -> Any:
    """The model on the device, in evaluation mode and without gradients. Raises InputError when it cannot be loaded."""
    from transformers import AutoModelForCausalLM

    options = library_options(config, device)
    if config.quantization != "none":
        options |= bitsandbytes_options(config, options["dtype"], device)
    with loading_model(config.model):
        model = AutoModelForCausalLM.from_pretrained(config.model, use_safetensors=True, **options)
        decompress(model)
    if config.quantization == "none":  # bitsandbytes has already placed quantised models
        model = model.to(device)
    return model.eval().requires_grad_(False)


def library_options(config: EngineConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for any head; sets the number of threads."""
    import torch

    torch.set_num_threads(config.threads)
    options: dict[str, Any] = {"dtype": config.dtype, "trust_remote_code": config.trust_remote_code}
    if config.dtype == "auto" and device.type == "cpu":
        options["dtype"] = "float32"
    if model_settings(config).get("attn_logit_softcapping"):
        # The fused kernel silently omits the cap, which changes the model.
        options["attn_implementation"] = "eager"
    return options


@contextmanager
def loading_model(model: str) -> Iterator[None]:
    """Without progress bars. Raises InputError when Transformers cannot load the model."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # Compressed-tensors has bars of its own, which cannot be turned off.
        with redirect_stderr(io.StringIO()) if _is_compressed(model) else nullcontext():
            yield
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"Transformers cannot load {model!r}: {type(error).__name__}: {error}; check the model"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()


def _is_compressed(model: str) -> bool:
    with suppress(InputError):  # the library says what is wrong
        return is_quantised(EngineConfig(model=model))
    return False


def decompress(model: Any) -> None:
    """Turn weights in the compressed-tensors format back into floats; other models are left alone.

    By itself that happens in the first forward pass of the whole model, with a progress bar, and not at all where only
    the layers below the head are called.
    """
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    if compressor is not None:
        with redirect_stderr(io.StringIO()):
            compressor.decompress_model(model)


def live_places(model: Any) -> dict[str, torch.Tensor]:
    """Live tensors by their names in the model and in its files: Transformers renames some when it loads a model, for
    example the output layer of GPT-NeoX."""
    from transformers.core_model_loading import revert_weight_conversion

    state: dict[str, torch.Tensor] = model.state_dict()
    live = {(tensor.data_ptr(), tensor.shape) for tensor in state.values()}
    files = revert_weight_conversion(model, dict(state))
    return {name: tensor for name, tensor in files.items() if (tensor.data_ptr(), tensor.shape) in live} | state


class ModelLoader:
    """Implements `solon.engines.transfer.WeightLoader` for a Transformers model: copies into its live tensors."""

    def __init__(self, model: Any) -> None:
        self._state: dict[str, torch.Tensor] = model.state_dict()
        self._places = live_places(model)

    def start(self, weights: Weights) -> None:
        """Raises AttestationError unless there is a value of the right shape for every parameter of the model."""
        places = self._places
        wrong = [
            leaf.name
            for leaf in weights.leaves
            if leaf.name not in places or tuple(places[leaf.name].shape) != leaf.shape
        ]
        missing = without_value([leaf.name for leaf in weights.leaves], self._state, places)
        if wrong or missing:
            raise AttestationError(
                f"weights {weights.version} do not fit the model: {len(missing)} parameters without a value, "
                f"{len(wrong)} of another name or shape ({', '.join([*missing, *wrong][:3])}); "
                "publish the whole state dict of the same architecture"
            )

    def chunk(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        """See `WeightLoader.chunk`."""
        import torch

        with torch.no_grad():
            for name, tensor in tensors:
                self._places[name].copy_(tensor)

    def finish(self) -> None:
        """Nothing is left to do: the manifest named every parameter."""


def without_value(sent: Collection[str], state: dict[str, torch.Tensor], places: dict[str, torch.Tensor]) -> list[str]:
    """Live tensors without a value among the sent names."""
    covered = {places[name].data_ptr() for name in sent if name in places}
    return [name for name, tensor in state.items() if tensor.data_ptr() not in covered]  # tied: one is enough
