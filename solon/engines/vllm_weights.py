"""New weights in a live vLLM model, and verification of its tensors.

vLLM's CPU layers compute with a repacked copy of their weight. The layerwise reload packs every layer that receives a
tensor, but a head that is tied to the embedding receives none and would silently keep computing with its old copy;
`refresh_tied` repacks those.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from solon.engines.digest import digest_tensors
from solon.engines.live_values import Live
from solon.engines.live_weights import JOINED, PACKED, CheckpointTensors, LiveWeights
from solon.engines.payload import named_tensors
from solon.errors import AttestationError
from solon.records import Weights

if TYPE_CHECKING:
    import torch

_EXACT_PROBE_WIDTH = 512
"""Up to this input width a packed weight is read completely, by multiplying with the identity."""
_NUM_PROBES = 8


def reload_weights(core: Any, vllm_config: Any, weights: Weights) -> None:
    """Replaces all weights of the model in the engine core `core`, between two of its steps.

    Raises AttestationError when parameters have no new values; the model is then unusable.
    """
    load_into(live_model(core), vllm_config, named_tensors(weights), source=f"weights {weights.version}")


def load_into(model: Any, vllm_config: Any, tensors: Iterable[tuple[str, Any]], *, source: str) -> None:
    """Replaces all weights of a live model. source: names the tensors in an error. Raises as `reload_weights`."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    names = {name for name, _ in model.named_parameters()}
    packed = {module: module.cpu_linear for module in model.modules() if hasattr(module, "cpu_linear")}
    with set_current_vllm_config(vllm_config), torch.no_grad():
        initialize_layerwise_reload(model)
        loaded = model.load_weights(_without_tied_copies(model, tensors))
        finalize_layerwise_reload(model, vllm_config.model_config)
        stale = [module for module, before in packed.items() if module.cpu_linear is before]
        refresh_tied(stale)
    missing = sorted(names - loaded) if loaded is not None else []
    if missing:
        raise AttestationError(
            f"{source} lack {len(missing)} parameters ({', '.join(missing[:3])}, …), expected all; "
            "publish the whole state dict"
        )


def refresh_tied(stale: list[Any]) -> None:
    """Repacks layers whose packed copy survived a reload although their shared weight was replaced."""
    for module in stale:
        if module.weight.numel() == 0:
            raise AttestationError(f"{type(module).__name__} received no new weights, expected them; it is stale")
        module.quant_method.process_weights_after_loading(module)


def live_model(core: Any) -> torch.nn.Module:
    """The network that the engine core runs in this process."""
    model: torch.nn.Module = core.model_executor.driver_worker.model_runner.get_model()
    return model


def live_checksum(model: torch.nn.Module) -> str:
    """Digest of all live tensors; a different value of any weight gives a different digest."""
    import torch

    with torch.no_grad():
        packed = ((n, _read_packed(m)) for n, m in model.named_modules() if hasattr(m, "cpu_linear"))
        kept = ((n, p) for n, p in model.named_parameters() if p.numel())
        return digest_tensors(itertools.chain(kept, packed))


def learn_layout(model: torch.nn.Module, checkpoint: str, weights: Weights) -> LiveWeights:
    """Learn how the live tensors are made of a file's tensors, before anything was loaded into the engine: they then
    hold the checkpoint as vLLM's own loader read it, or the first payload if the checkpoint has no files here."""
    known = CheckpointTensors(checkpoint)
    joined = JOINED | dict(getattr(model, "packed_modules_mapping", None) or {})
    return LiveWeights(live_tensors(model), known or dict(named_tensors(weights)), joined=joined)


def live_tensors(model: torch.nn.Module) -> list[Live]:
    """All live tensors: parameters, and the packed copies of linear layers."""
    import functools

    named = {id(parameter): name for name, parameter in model.named_parameters()}
    live = [
        Live(name=name, loaded_as=name, dtype=parameter.dtype, tensor=parameter)
        for name, parameter in model.named_parameters()
        if parameter.numel()
    ]
    for name, module in model.named_modules():
        if hasattr(module, "cpu_linear"):
            weight: Any = module.weight
            live.append(
                Live(
                    name=f"{name}.weight{PACKED}",
                    loaded_as=named.get(id(weight), f"{name}.weight"),
                    dtype=getattr(module, "params_dtype", weight.dtype),
                    multiply=functools.partial(_multiply, module),
                    width=_input_width(module),
                )
            )
    return live


def _multiply(module: Any, probe_KC: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = module.cpu_linear(probe_KC, module.weight, None)
    return result


def _without_tied_copies(
    model: torch.nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    # Some trainers save the tied head as well; loading it would count the shared weight twice.
    tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    for name, tensor in tensors:
        if not (tied and name == "lm_head.weight"):
            yield name, tensor


def _read_packed(module: Any) -> torch.Tensor:
    """The output of a layer with an opaque packed weight for fixed inputs: exact for narrow layers."""
    import torch

    width = _input_width(module)
    if width <= _EXACT_PROBE_WIDTH:
        probes = torch.eye(width)
    else:
        probes = torch.randn(_NUM_PROBES, width, generator=torch.Generator().manual_seed(0))
    dtype = module.params_dtype if hasattr(module, "params_dtype") else module.weight.dtype
    result: torch.Tensor = module.cpu_linear(probes.to(dtype), module.weight, None)
    return result


def _input_width(module: Any) -> int:
    width = getattr(module, "input_size_per_partition", None) or module.weight.shape[-1]
    return int(width)
