"""Policy versions as LoRA adapters of a live vLLM engine: added, compared with what was sent, and removed.

Each load is an adapter of its own, with a name, an integer id and a directory that are never used again: vLLM keys its
prefix cache by name and path, and with a name used twice a request would read keys and values of another version. The
directory lasts for the call that reads it; vLLM keeps the adapter in memory, pinned.

Shapes: R rank, I inputs, O outputs of a layer.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.engines.adapter_names import layer_of, version_name
from solon.engines.base import AdapterRoom
from solon.engines.chunks import named_tensors
from solon.engines.digest_tree import verify
from solon.errors import AttestationError, RunFailedError
from solon.records import WeightCheck, Weights

if TYPE_CHECKING:
    import torch

Factors = Mapping[str, Mapping[str, "torch.Tensor"]]
"""The factors "A", [R, I], and "B", [O, R], of each layer, by the engine's own names."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A version that the engine holds."""

    version: int
    request: Any
    """vLLM's `LoRARequest`, which a request for text names."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the engine keeps the factors of a layer that was sent, or of a part of a layer that it joins."""

    layer: str
    module: Any
    part: int

    def differs(self, slot: int, sent: Factors) -> bool:
        """Whether the live factors are other than those sent; zeros where none was sent."""
        factors = sent.get(self.layer, {})
        live = {"A": self.module.lora_a_stacked[self.part], "B": self.module.lora_b_stacked[self.part]}
        return any(not _holds(live[factor][slot, 0], factors.get(factor)) for factor in live)


class Adapters:
    """The adapters of one engine; at most `room.versions` at once."""

    def __init__(self, llm: Any, core: Any, room: AdapterRoom, *, who: str) -> None:
        """core: vLLM's engine core, in this process. who: the engine's name."""
        self._llm, self._who, self._room = llm, who, room
        self._manager = core.model_executor.driver_worker.model_runner.lora_manager._adapter_manager
        self._loads: Counter[int] = Counter()
        self._ids = 0
        self._alive: list[Adapter] = []
        self.current: Adapter | None = None
        """That of the newest version; None before the first."""

    @property
    def has_old(self) -> bool:
        """Whether versions before the current one are alive."""
        return len(self._alive) > 1

    @property
    def is_full(self) -> bool:
        """Whether another version needs the place of one that is alive."""
        return len(self._alive) >= self._room.versions

    @property
    def oldest(self) -> Adapter:
        """The version whose place is given up first."""
        return self._alive[0]

    def require_fit(self, weights: Weights) -> None:
        """Verify the chunks, and that the engine has a place for every factor; changes nothing. Raises
        AttestationError or PayloadLostError."""
        verify(weights, self._who)
        if weights.adapter_rank > self._room.rank:
            raise AttestationError(
                f"engine {self._who} got an adapter of rank {weights.adapter_rank}, expected at most "
                f"{self._room.rank}; build the engine for the learner's rank"
            )
        known = {place.layer for place in self._places()}
        named = {self._own_name(leaf.name) for leaf in weights.leaves}
        if strange := sorted(named - known):
            raise AttestationError(
                f"engine {self._who} has no place for the adapters of {len(strange)} layers ({', '.join(strange[:3])}),"
                " which it would leave out without a word; narrow learn.lora.target_modules, or set "
                "publish.way = 'merged'"
            )

    def add(self, weights: Weights) -> None:
        """Load a version that fits beside those alive and make it the current one."""
        from vllm.lora.request import LoRARequest

        name = version_name(weights.version, self._loads[weights.version])
        self._loads[weights.version] += 1
        self._ids += 1
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
            _write(weights, Path(folder))
            request = LoRARequest(name, self._ids, folder)
            self._llm.add_lora(request)
            self._llm.pin_lora(self._ids)
        if self._ids not in self._llm.list_loras():
            raise AttestationError(f"engine {self._who} does not list adapter {name} after loading it; start a new one")
        self.current = Adapter(weights.version, request)
        self._alive.append(self.current)

    def keep(self, used: set[int]) -> None:
        """Remove every adapter but the current one and those with these ids."""
        for adapter in list(self._alive):
            if adapter is not self.current and adapter.request.lora_int_id not in used:
                self.remove(adapter)

    def remove(self, adapter: Adapter) -> None:
        """Remove a version. No request may name it any more."""
        self._llm.remove_lora(adapter.request.lora_int_id)
        self._alive.remove(adapter)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters that the engine holds, oldest first."""
        listed = self._llm.list_loras()
        return tuple(one.request.lora_name for one in self._alive if one.request.lora_int_id in listed)

    def check(self, weights: Weights, *, dtype: str, quantised: bool) -> WeightCheck:
        """Compares the live factors of the current version with those sent, value by value."""
        if self.current is None:
            raise RunFailedError(f"engine {self._who} has loaded no adapter, expected one to compare; load it first")
        identity, sent = self.current.request.lora_int_id, self._by_layer(weights)
        places = list(self._places())
        if identity not in self._llm.list_loras() or identity not in self._manager.lora_index_to_id:
            return WeightCheck(dtype=dtype, compared=len(places), stale=tuple(sent), quantised=quantised)
        slot = self._manager.lora_index_to_id.index(identity)
        missing = tuple(sorted(sent.keys() - {place.layer for place in places}))
        return WeightCheck(
            dtype=dtype,
            compared=len(places),
            stale=tuple(f"adapter of {place.layer}" for place in places if place.differs(slot, sent)),
            unknown=missing,
            uncompared=missing,
            quantised=quantised,
        )

    def _places(self) -> Iterator[_Place]:
        """Every part of every layer that the engine has wrapped. A layer of an unknown layout has none."""
        for name, module in self._manager.modules.items():
            owner, _, last = name.rpartition(".")
            parts: Sequence[str] = self._manager.packed_modules_mapping.get(last) or (last,)
            stacked = getattr(module, "lora_a_stacked", ())
            if not isinstance(stacked, tuple) or len(stacked) != len(parts):
                continue
            for number, part in enumerate(parts):
                yield _Place(f"{owner}.{part}" if owner else part, module, number)

    def _by_layer(self, weights: Weights) -> Factors:
        found: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in named_tensors(weights):
            found.setdefault(self._own_name(name), {})[layer_of(name)[1]] = tensor
        return found

    def _own_name(self, name: str) -> str:
        """The engine's name of the layer of a factor; vLLM drops what it cannot place under this name."""
        from vllm.lora.utils import parse_fine_tuned_lora_name

        layer_of(name)
        mapper = getattr(self._manager.model, "hf_to_vllm_mapper", None)
        found: tuple[str, bool] = parse_fine_tuned_lora_name(name, mapper and mapper.get_rename_mapper())
        return found[0]


@contextmanager
def layers_alone() -> Iterator[None]:
    """Active while vLLM builds an engine: embedding and head are left as they are. vLLM would wrap them too, and its
    wrapped head expects one row for each request, which the log-probs of a prompt are not."""
    from vllm.lora import model_manager
    from vllm.model_executor.layers.linear import LinearBase

    original = model_manager.get_supported_lora_modules
    model_manager.get_supported_lora_modules = lambda model: sorted(
        {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, LinearBase)}
    )
    try:
        yield
    finally:
        model_manager.get_supported_lora_modules = original


def _holds(live: torch.Tensor, sent: torch.Tensor | None) -> bool:
    """Whether a slot holds this factor in its corner, and zeros elsewhere."""
    import torch

    expected = torch.zeros_like(live)
    if sent is not None:
        rows, columns = sent.shape
        if rows > live.shape[0] or columns > live.shape[1]:
            return False
        expected[:rows, :columns] = sent.to(live.device, live.dtype)
    return torch.equal(expected, live)


def _write(weights: Weights, folder: Path) -> None:
    """The adapter as PEFT writes one; the scale is inside of B already."""
    from safetensors.torch import save_file

    tensors = dict(named_tensors(weights))
    layers = sorted({layer_of(name)[0].rpartition(".")[2] for name in tensors})
    settings = {
        "peft_type": "LORA",
        "r": weights.adapter_rank,
        "lora_alpha": weights.adapter_rank,
        "target_modules": layers,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")
