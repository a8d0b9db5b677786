"""New weights in a live vLLM model, and verification of its tensors.

vLLM's CPU layers compute with a repacked copy of their weight. The layerwise reload packs every layer that receives a
tensor, but a head that is tied to the embedding receives none and would silently keep computing with its old copy;
`refresh_tied` repacks those.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from solon.engines.chunks import SentTensors
from solon.engines.digest import digest_tensors
from solon.engines.live_values import Live
from solon.engines.live_weights import JOINED, PACKED, CheckpointTensors, LiveWeights
from solon.engines.ranks.meeting import ALONE, EngineRanks
from solon.errors import AttestationError
from solon.records import Weights

if TYPE_CHECKING:
    import torch

_EXACT_PROBE_WIDTH = 512
"""Up to this input width a packed weight is read completely, by multiplying with the identity."""
_NUM_PROBES = 8
_RELOAD = "vllm.model_executor.model_loader.reload.layerwise"
"""The module, and logger, that loads a layer at a time."""


class LayerwiseLoader:
    """Implements `solon.engines.transfer.WeightLoader` for a live vLLM model.

    From the first chunk to the end of
    `finish` layers lie on the meta device, and the model must not run.
    """

    def __init__(
        self,
        model: Any,
        vllm_config: Any,
        *,
        learn: Callable[[Weights], None] = lambda weights: None,
        source: str = "weights",
    ) -> None:
        """learn: called with the manifest before anything changes. source: names the tensors in an error."""
        self._model, self._vllm_config, self._learn = model, vllm_config, learn
        self._source = source
        self._names = {name for name, _ in model.named_parameters()}
        self._packed = {module: module.cpu_linear for module in model.modules() if hasattr(module, "cpu_linear")}
        self._loaded: set[str] | None = None
        """Parameters with new values; None before the first chunk."""
        self._tells = True
        """Whether the model says which parameters it loaded."""

    def start(self, weights: Weights) -> None:
        """See `WeightLoader.start`."""
        self._source = f"weights {weights.version}"
        self._learn(weights)

    def chunk(self, tensors: Iterable[tuple[str, Any]]) -> None:
        """See `WeightLoader.chunk`."""
        import torch
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        with set_current_vllm_config(self._vllm_config), torch.no_grad():
            if self._loaded is None:
                self._loaded = set()
                initialize_layerwise_reload(self._model)
            loaded = self._model.load_weights(_without_tied_copies(self._model, tensors))
        self._tells = self._tells and loaded is not None
        self._loaded |= loaded or set()

    def finish(self) -> None:
        """Raises AttestationError when parameters have no new values; the model is then unusable."""
        import torch
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with set_current_vllm_config(self._vllm_config), torch.no_grad(), _quiet(self._tells):
            finalize_layerwise_reload(self._model, self._vllm_config.model_config)
            refresh_tied([module for module, before in self._packed.items() if module.cpu_linear is before])
        missing = sorted(self._names - (self._loaded or set())) if self._tells else []
        if missing:
            raise AttestationError(
                f"{self._source} lack {len(missing)} parameters ({', '.join(missing[:3])}, …), expected all; "
                "publish the whole state dict"
            )


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Without vLLM's warning of layers that got no tensor: rotary positions and a tied head, at every version. The
    parameters that lack new values are counted beside it."""
    logger = logging.getLogger(_RELOAD)

    def said(record: logging.LogRecord) -> bool:
        return "Failed to load weights" not in str(record.msg)

    if quiet:
        logger.addFilter(said)
    try:
        yield
    finally:
        logger.removeFilter(said)


def load_into(model: Any, vllm_config: Any, tensors: Iterable[tuple[str, Any]], *, source: str) -> None:
    """Replaces all weights of a live model. source: names the tensors in an error. Raises as `finish`."""
    loader = LayerwiseLoader(model, vllm_config, source=source)
    loader.chunk(tensors)
    loader.finish()


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


def learn_layout(
    model: torch.nn.Module, checkpoint: str, weights: Weights, *, ranks: EngineRanks = ALONE
) -> LiveWeights:
    """Learn how the live tensors are made of a file's tensors, before anything was loaded into the engine: they then
    hold the checkpoint as vLLM's own loader read it, or the first version if the checkpoint has no files here. ranks:
    this process among those that each hold a part of the model."""
    known = CheckpointTensors(checkpoint)
    joined = JOINED | dict(getattr(model, "packed_modules_mapping", None) or {})
    return LiveWeights(live_tensors(model), known or SentTensors(weights), joined=joined, ranks=ranks)


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
