"""Finds tensors of a live model that differ from the published weights, value by value, in the engine's own layout.

An engine joins q, k and v, transposes, sorts heads, pads the vocabulary, and on a CPU computes with a packed copy that
only a matrix product can read. `LiveWeights` learns from the engine's original checkpoint how each live tensor is made
of tensors of the file. After every load it compares the live tensors with the payload. Equality is exact, so neither
rounding nor a small update matters: every stale tensor is found, and no fresh one is called stale. Nothing is skipped
silently: a tensor that cannot be compared is `unknown`, and one that should have been compared and was not is
`uncompared`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from solon.engines.digest import digest_tensors
from solon.engines.live_values import STACKED, TRANSPOSED, Layout, Live, has_equal_rows, holds, row_order
from solon.engines.ranks.meeting import ALONE, EngineRanks
from solon.engines.ranks.shares import is_a_share, layout_of_share
from solon.errors import AttestationError
from solon.records import WeightCheck

if TYPE_CHECKING:
    import torch

PACKED = " (packed copy)"
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Modules that engines join, in row order."""


@dataclass(frozen=True, slots=True)
class _Plan:
    sources: tuple[str, ...]
    layout: Layout


class LiveWeights:
    """Learns the layout from live tensors that hold the values of `checkpoint`, and checks later loads against it.

    A live tensor of an unknown layout is `unknown`: it must change when an otherwise unaccounted tensor of its layer
    has changed. Raises AttestationError when there are no live tensors.
    """

    def __init__(
        self,
        live: Sequence[Live],
        checkpoint: Mapping[str, torch.Tensor],
        *,
        joined: Mapping[str, Sequence[str]] = JOINED,
        ranks: EngineRanks = ALONE,
    ) -> None:
        if not live:
            raise AttestationError("the engine shows no live tensor, expected its weights: nothing can be compared")
        self._ranks = ranks
        self._in_file = tuple(checkpoint)
        self._file_keys = _by_key(checkpoint)
        self._plans = self._learn(live, checkpoint, joined)
        self._dtype = live[0].dtype
        self._sent = self._loose_digests(checkpoint)
        self._held = _digests((one.name, one.tensor) for one in self._unknown(live))

    def check(self, live: Sequence[Live], sent: Mapping[str, torch.Tensor], *, salt: int, dtype: str) -> WeightCheck:
        """Compares `sent` to the live tensors. `salt`: selects the columns read from wide packed tensors."""
        sent = self._by_name_in_file(sent)
        now = {one.name: one for one in live}
        stale, uncompared = [], []
        for name, plan in self._plans.items():
            if name not in now or any(source not in sent for source in plan.sources):
                uncompared.append(name)
            elif not holds(now[name], [sent[source] for source in plan.sources], plan.layout, salt=salt):
                stale.append(name)
        unknown = self._unknown(live)
        stale += self._unchanged(unknown, sent)
        return WeightCheck(
            dtype=dtype,
            compared=len(self._plans) - len(uncompared),
            stale=tuple(stale),
            unknown=(*uncompared, *(one.name for one in unknown)),
            uncompared=tuple(uncompared),
        )

    def _learn(
        self, live: Sequence[Live], checkpoint: Mapping[str, torch.Tensor], joined: Mapping[str, Sequence[str]]
    ) -> dict[str, _Plan]:
        plans: dict[str, _Plan] = {}
        layouts: dict[str, Layout | None] = {}
        for one in sorted(live, key=lambda one: one.loaded_as.endswith("bias")):  # weights before their biases
            sources = _sources(one.loaded_as, self._file_keys, joined)
            parts = [checkpoint[name] for name in sources]
            weight = re.sub(r"bias$", "weight", one.loaded_as)
            if weight != one.loaded_as and weight in layouts:
                layout = _layout_of_bias(one, parts, layouts[weight], self._ranks)
            else:
                layout = _layout(one, parts, self._ranks)
            layouts[one.loaded_as] = layouts.get(one.loaded_as) or layout
            if layout is not None:
                plans[one.name] = _Plan(sources, layout)
        return plans

    def _by_name_in_file(self, sent: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The payload by the names of the checkpoint: GPT-2's lack the learner's prefix `transformer.`. Tensors that
        the checkpoint lacks keep their names."""
        keys = _by_key(sent)
        own = {name: name for name in self._in_file if name in sent}
        own |= {name: keys[key] for key, name in self._file_keys.items() if name not in own and key in keys}
        taken = set(own.values())
        return _Renamed(sent, own | {name: name for name in sent if name not in taken})

    def _unknown(self, live: Sequence[Live]) -> list[Live]:
        # A tensor kept beside a packed copy of known layout is not computed with, or is checked under another name.
        return [one for one in live if not {one.name, one.name + PACKED} & self._plans.keys()]

    def _unchanged(self, unknown: Sequence[Live], sent: Mapping[str, torch.Tensor]) -> list[str]:
        """Unknown tensors without a changed value, in layers of which a published tensor changed. Packed copies are
        excluded: a selection of their columns may stay the same when others change."""
        sent_now = self._loose_digests(sent)
        held_now = _digests((one.name, one.tensor) for one in unknown)
        renewed = {_layer(name) for name, digest in sent_now.items() if digest != self._sent.get(name, digest)}
        different = {_layer(name) for name, digest in held_now.items() if digest != self._held.get(name)}
        self._sent, self._held = self._sent | sent_now, held_now
        return [name for name in held_now if _layer(name) in renewed - different]

    def _loose_digests(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """Digests of the tensors outside all plans, rounded as in the engine: a file, or a small step, may differ from
        the live values by rounding alone."""
        accounted = {name for plan in self._plans.values() for name in plan.sources}
        return _digests((name, tensors[name].to(self._dtype)) for name in sorted(tensors.keys() - accounted))


class _Renamed(Mapping[str, "torch.Tensor"]):
    """Tensors under other names, each opened on access."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class CheckpointTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of a model's safetensors files, each read on access; empty when there are no files."""

    def __init__(self, model: str) -> None:
        from safetensors import safe_open

        self._files: dict[str, Path] = {}
        for path in sorted(_directory(model).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _directory(model: str) -> Path:
    path = Path(model).expanduser()
    if path.exists():
        return path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, local_files_only=True))


def _digests(named: Iterable[tuple[str, torch.Tensor | None]]) -> dict[str, str]:
    return {name: digest_tensors([(name, tensor)]) for name, tensor in named if tensor is not None}


def _key(name: str) -> str:
    """A name without wrappers, which differ between libraries around the same layers."""
    return ".".join(part for part in name.split(".") if part not in ("model", "transformer", "language_model"))


def _by_key(names: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    twice = set()
    for name in names:
        if found.setdefault(_key(name), name) != name:
            twice.add(_key(name))
    return {key: name for key, name in found.items() if key not in twice}


def _sources(loaded_as: str, names: Mapping[str, str], joined: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names of the file's tensors that make up a parameter; empty when unknown."""
    key = _key(loaded_as)
    if key in names:
        return (names[key],)
    path, _, leaf = key.rpartition(".")
    owner, _, module = path.rpartition(".")
    keys = [".".join(filter(None, (owner, part, leaf))) for part in joined.get(module, ())]
    return tuple(names[key] for key in keys) if all(key in names for key in keys) else ()


def _layer(name: str) -> str:
    """`model.layers.3.mlp.experts.w2_weight` belongs to layer 3; a name without a number to its first word."""
    found = re.search(r"\.(\d+)\.", name)
    return found[1] if found else _key(name).partition(".")[0]


def _layout(live: Live, parts: Sequence[torch.Tensor], ranks: EngineRanks) -> Layout | None:
    """How a live tensor that holds the values of these parts is made of them; None when it cannot be determined."""
    if not parts:
        return None
    if ranks.size > 1 and is_a_share(live, parts):
        return layout_of_share(live, parts, ranks)
    stacked, transposed = (holds(live, parts, layout, salt=0) for layout in (STACKED, TRANSPOSED))
    if stacked and transposed:
        return None  # square and symmetric (all zeros, for example): both layouts are possible
    if stacked:
        # A vector without a matrix, such as a norm of all ones, has the order of the features.
        return STACKED if not _order_is_hidden(parts) or (parts[0].ndim < 2 and len(parts) == 1) else None
    if transposed:
        return None if _order_is_hidden([part.T for part in parts]) else TRANSPOSED
    return _reordered(live, parts)


def _layout_of_bias(
    live: Live, parts: Sequence[torch.Tensor], weight: Layout | None, ranks: EngineRanks
) -> Layout | None:
    """A bias has the row order of its weight, which is visible even if the bias's own rows are equal."""
    if not parts:
        return None
    if weight is not None and _has_rows_of(weight, parts):
        layout = Layout("stacked", cut=weight.cut) if weight.form == "transposed" else weight
        if holds(live, parts, layout, salt=0):
            return layout
    if ranks.size > 1 and is_a_share(live, parts):
        return layout_of_share(live, parts, ranks)
    if _order_is_hidden(parts):
        return None
    return STACKED if holds(live, parts, STACKED, salt=0) else _reordered(live, parts)


def _has_rows_of(weight: Layout, parts: Sequence[torch.Tensor]) -> bool:
    return weight.order_R is None or len(weight.order_R) == sum(part.numel() for part in parts)


def _reordered(live: Live, parts: Sequence[torch.Tensor]) -> Layout | None:
    if (order_R := row_order(live, parts)) is None:
        return None
    layout = Layout("reordered", order_R)
    return layout if holds(live, parts, layout, salt=0) else None


def _order_is_hidden(parts: Sequence[torch.Tensor]) -> bool:
    return has_equal_rows(parts) and sum(len(part) if part.ndim else 1 for part in parts) > 1
