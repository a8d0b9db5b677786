"""Which tensors of a live model do not hold what was sent: compared value by value, in the engine's own layout.

An engine joins q, k and v, transposes, pads the vocabulary, and on a CPU computes with a packed copy that only a
matrix product can read. `LiveWeights` learns from the checkpoint that the engine was built from how each live tensor
is made of tensors of the file. After every load it compares the live ones with the payload. Equality is exact, so
neither rounding nor a small update matters: a stale tensor is found, and a fresh one is never called stale.

R rows (output features), C columns (input features), K columns that are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from solon.engines.digest import digest_tensors
from solon.records import WeightCheck

if TYPE_CHECKING:
    import torch

Form = Literal["stacked", "transposed", "reordered"]
"""How a live tensor is made of those in the file: one below the other; the same, each transposed; or with the rows in
another order (GPT-NeoX sorts its heads)."""
PACKED = " (packed copy)"
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Modules that engines join, in the order of their rows."""
_PADDING_ROWS = 64
"""Vocabularies are padded to a multiple of this."""
_CHUNK_ELEMENTS = 1 << 24
_READ_BUDGET = 1 << 24
"""Multiplications spent on reading one packed tensor: narrow ones are read whole, of wide ones some columns."""
_MIN_COLUMNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A tensor that the model computes with, or a packed copy that can be multiplied with and not looked at."""

    name: str
    loaded_as: str
    """Name of the parameter whose values it holds; another than `name` for a tied head."""
    dtype: torch.dtype
    tensor: torch.Tensor | None = None
    multiply: Callable[[torch.Tensor], torch.Tensor] | None = None
    """[K, C] -> [K, R]. Kernels read beyond their operand when C is another than they were made for."""
    width: int = 0
    """That C."""


@dataclass(frozen=True, slots=True)
class _Plan:
    sources: tuple[str, ...]
    form: Form


class LiveWeights:
    """Learns the layout from live tensors that hold the values of `checkpoint`, and checks later loads against it.

    A live tensor of a layout that is not understood is `unknown`: it must change when a tensor of its layer that
    nothing else accounts for has changed.
    """

    def __init__(
        self,
        live: Sequence[Live],
        checkpoint: Mapping[str, torch.Tensor],
        *,
        joined: Mapping[str, Sequence[str]] = JOINED,
    ) -> None:
        self._plans: dict[str, _Plan] = {}
        names = _by_key(checkpoint)
        for one in live:
            sources = _sources(one.loaded_as, names, joined)
            parts = [checkpoint[name] for name in sources]
            if (form := _form(one, parts)) is not None:
                self._plans[one.name] = _Plan(sources, form)
        accounted = {name for plan in self._plans.values() for name in plan.sources}
        self._loose = {name for name in checkpoint if name not in accounted}
        self._dtype = live[0].dtype if live else None
        self._sent = self._loose_digests(checkpoint)
        self._held = _digests((one.name, one.tensor) for one in self._unknown(live))

    def check(self, live: Sequence[Live], sent: Mapping[str, torch.Tensor], *, salt: int, dtype: str) -> WeightCheck:
        """What became of `sent` in the live tensors. `salt`: other columns of wide packed tensors are read for each."""
        stale, compared = [], 0
        for one in live:
            plan = self._plans.get(one.name)
            if plan is None or any(name not in sent for name in plan.sources):
                continue
            compared += 1
            if not _holds(one, [sent[name] for name in plan.sources], plan.form, salt=salt):
                stale.append(one.name)
        unknown = self._unknown(live)
        stale += self._unchanged(unknown, sent)
        return WeightCheck(
            dtype=dtype, compared=compared, stale=tuple(stale), unknown=tuple(one.name for one in unknown)
        )

    def _unknown(self, live: Sequence[Live]) -> list[Live]:
        # What is kept beside a packed copy that was understood is not computed with, or is looked at by another name.
        return [
            one for one in live if one.tensor is not None and not {one.name, one.name + PACKED} & self._plans.keys()
        ]

    def _unchanged(self, unknown: Sequence[Live], sent: Mapping[str, torch.Tensor]) -> list[str]:
        """Unknown tensors of layers in which something was sent anew and nothing became different."""
        sent_now = self._loose_digests(sent)
        held_now = _digests((one.name, one.tensor) for one in unknown)
        renewed = {_layer(name) for name, digest in sent_now.items() if digest != self._sent.get(name)}
        different = {_layer(name) for name, digest in held_now.items() if digest != self._held.get(name)}
        self._sent, self._held = self._sent | sent_now, held_now
        return [name for name in held_now if _layer(name) in renewed - different]

    def _loose_digests(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """As the engine rounds them: a file, or a small step, may differ from what is held by rounding alone."""
        names = sorted(self._loose & tensors.keys())
        return _digests((name, tensors[name].to(self._dtype)) for name in names)


def same_values(live: torch.Tensor, sent: torch.Tensor) -> bool:
    """Whether `live` holds what `sent` becomes in its dtype. Takes no copy of more than a few MiB."""
    import torch

    if live.shape != sent.shape:
        return False
    rows = live.shape[0] if live.ndim else 1
    live, sent = live.detach().reshape(rows, -1), sent.reshape(rows, -1)
    step = max(1, _CHUNK_ELEMENTS // max(1, live.shape[1]))
    return all(
        torch.equal(live[row : row + step], sent[row : row + step].to(live.device, live.dtype))
        for row in range(0, rows, step)
    )


class CheckpointTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of a model's safetensors files, each read when it is asked for; empty when there are no files."""

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
    """Wrappers around the same layers are called differently here and there."""
    return ".".join(part for part in name.split(".") if part not in ("model", "transformer", "language_model"))


def _by_key(names: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    twice = set()
    for name in names:
        if found.setdefault(_key(name), name) != name:
            twice.add(_key(name))
    return {key: name for key, name in found.items() if key not in twice}


def _sources(loaded_as: str, names: Mapping[str, str], joined: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names in the file of the tensors that make up a parameter; none when they are not known."""
    key = _key(loaded_as)
    if key in names:
        return (names[key],)
    path, _, leaf = key.rpartition(".")
    owner, _, module = path.rpartition(".")
    keys = [".".join(filter(None, (owner, part, leaf))) for part in joined.get(module, ())]
    return tuple(names[key] for key in keys) if all(key in names for key in keys) else ()


def _layer(name: str) -> str:
    """`model.layers.3.mlp.experts.w2_weight` is of layer 3; what has no number is of its own first word."""
    found = re.search(r"\.(\d+)\.", name)
    return found[1] if found else _key(name).partition(".")[0]


def _form(live: Live, parts: Sequence[torch.Tensor]) -> Form | None:
    """How a live tensor is made of these, seen from one that holds their values; None when it is not to be seen."""
    if not parts:
        return None
    if _holds(live, parts, "stacked", salt=0):
        if _holds(live, parts, "transposed", salt=0):
            return None  # square and symmetric, zeros say: it may be either
        # Rows that are all the same, as biases are before training, do not show their order.
        return "reordered" if _has_equal_rows(parts) else "stacked"
    later: tuple[Form, ...] = ("transposed", "reordered")
    return next((form for form in later if _holds(live, parts, form, salt=0)), None)


def _has_equal_rows(parts: Sequence[torch.Tensor]) -> bool:
    first = parts[0][:1] if parts[0].ndim else parts[0]
    return all(bool((part[:2] == first).all()) and bool((part == first).all()) for part in parts)


def _holds(live: Live, parts: Sequence[torch.Tensor], form: Form, *, salt: int) -> bool:
    if form == "transposed":
        if any(part.ndim != 2 for part in parts):
            return False
        parts = [part.T for part in parts]
    if any(part.ndim == 0 or part.shape[1:] != parts[0].shape[1:] for part in parts[1:]):
        return False
    if live.multiply is not None:
        return _product_holds(live, parts, form, salt)
    assert live.tensor is not None
    return _tensor_holds(live.tensor, parts, form, salt)


def _tensor_holds(live: torch.Tensor, parts: Sequence[torch.Tensor], form: Form, salt: int) -> bool:
    if not (live.ndim and parts[0].ndim):
        return len(parts) == 1 and same_values(live, parts[0])
    rows = sum(len(part) for part in parts)
    if live.shape[1:] != parts[0].shape[1:] or not 0 <= len(live) - rows < _PADDING_ROWS:
        return False
    if form == "reordered":
        return _reordered(live[:rows], parts, salt)
    start = 0
    for part in parts:
        if not same_values(live[start : start + len(part)], part):
            return False
        start += len(part)
    return True


def _product_holds(live: Live, parts: Sequence[torch.Tensor], form: Form, salt: int) -> bool:
    """Multiplying with columns of the identity gives columns of the weight, exactly: each is one product with 1 and
    sums of 0."""
    import torch

    assert live.multiply is not None
    if parts[0].ndim != 2 or parts[0].shape[1] != live.width:
        return False
    rows, width = sum(len(part) for part in parts), parts[0].shape[1]
    column_K = _columns(rows, width, salt)
    probe_KC = torch.zeros(len(column_K), width, dtype=live.dtype)
    probe_KC[torch.arange(len(column_K)), column_K] = 1
    held_KR = live.multiply(probe_KC)
    if not 0 <= held_KR.shape[1] - rows < _PADDING_ROWS:
        return False
    sent_RK = _flushed(torch.cat([part[:, column_K] for part in parts]).to(live.dtype))
    held_RK = _flushed(held_KR[:, :rows].T)
    return _same_sets(held_RK, sent_RK) if form == "reordered" else torch.equal(held_RK, sent_RK)


def _flushed(tensor: torch.Tensor) -> torch.Tensor:
    """Processors that multiply in bfloat16 take numbers below 1.2e-38 for 0."""
    import torch

    return torch.where(tensor.abs() < torch.finfo(torch.bfloat16).tiny, torch.zeros_like(tensor), tensor)


def _reordered(live: torch.Tensor, parts: Sequence[torch.Tensor], salt: int) -> bool:
    import torch

    rows = len(live)
    live_RC = live.detach().reshape(rows, -1)
    column_K = _columns(rows, live_RC.shape[1], salt)
    sent_RK = torch.cat([part.reshape(len(part), -1)[:, column_K] for part in parts])
    return _same_sets(live_RC[:, column_K.to(live.device)], sent_RK.to(live.device, live.dtype))


def _same_sets(a_RK: torch.Tensor, b_RK: torch.Tensor) -> bool:
    import torch

    return torch.equal(a_RK.sort(0).values, b_RK.sort(0).values)


def _columns(rows: int, width: int, salt: int) -> torch.Tensor:
    """Which columns are read, [K]: all, or a random choice that is different for every salt."""
    import torch

    affordable = max(_MIN_COLUMNS, _READ_BUDGET // max(1, rows * width))
    if affordable >= width:
        return torch.arange(width)
    return torch.randperm(width, generator=torch.Generator().manual_seed(salt))[:affordable]
