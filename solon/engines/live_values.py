"""Whether one live tensor holds given values: compared exactly, or read by multiplication if it is packed.

R rows (output features), C columns (input features), K read columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

_PADDING_ROWS = 64
"""Vocabularies are padded to a multiple of this."""
_CHUNK_ELEMENTS = 1 << 24
_READ_BUDGET = 1 << 24
"""Most multiplications for reading one packed tensor: narrow ones are read whole, wide ones in part."""
_MIN_COLUMNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A tensor that the model computes with, or a packed copy that can only be multiplied with."""

    name: str
    loaded_as: str
    """Name of the parameter whose values it holds; differs from `name` for a tied head."""
    dtype: torch.dtype
    tensor: torch.Tensor | None = None
    multiply: Callable[[torch.Tensor], torch.Tensor] | None = None
    """[K, C] -> [K, R]. Kernels read out of bounds when C is not the one they were made for."""
    width: int = 0
    """That C."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows (empty: all), and columns of all parts (None: all); from the first to before the last."""

    rows: tuple[tuple[int, int, int], ...] = ()
    """Pieces in the order of the live rows: number of the part, first, last."""
    columns: tuple[int, int] | None = None

    def of(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Views. A vector has one column, which is never cut."""
        if self.rows:
            parts = [parts[number][first:last] for number, first, last in self.rows]
        if self.columns is None:
            return list(parts)
        first, last = self.columns
        return [part[:, first:last] if part.ndim > 1 else part for part in parts]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How a live tensor is made of the tensors in the file: stacked; stacked after transposing each; or stacked with
    reordered rows (GPT-NeoX sorts its heads)."""

    form: Literal["stacked", "transposed", "reordered"]
    order_R: torch.Tensor | None = None
    """Only for `reordered`: the stacked row that each live row holds."""
    cut: Cut | None = None
    """What a rank of several holds of each part, after transposing; None: all of it."""


STACKED, TRANSPOSED = Layout("stacked"), Layout("transposed")


def same_values(live: torch.Tensor, sent: torch.Tensor, order_R: torch.Tensor | None = None) -> bool:
    """Whether `live` equals `sent` in its own dtype, with its rows in this order. Copies at most a few MiB."""
    import torch

    if live.shape != sent.shape:
        return False
    rows = live.shape[0] if live.ndim else 1
    live, sent = live.detach().reshape(rows, -1), sent.reshape(rows, -1)
    step = max(1, _CHUNK_ELEMENTS // max(1, live.shape[1]))
    for row in range(0, rows, step):
        part = sent[row : row + step] if order_R is None else sent[order_R[row : row + step]]
        if not torch.equal(live[row : row + step], part.to(live.device, live.dtype)):
            return False
    return True


def holds(live: Live, parts: Sequence[torch.Tensor], layout: Layout, *, salt: int) -> bool:
    """Whether a live tensor of this layout holds these parts. `salt`: selects the columns read from a wide packed
    copy."""
    if layout.form == "transposed":
        if any(part.ndim != 2 for part in parts):
            return False
        parts = [part.T for part in parts]
    if layout.cut is not None:
        if any(not part.ndim for part in parts):
            return False
        parts = layout.cut.of(parts)
    if live.multiply is None:
        return _tensor_holds(live, parts, layout)
    import torch

    if (read := _read(live, parts, salt)) is None:
        return False
    held_RK, sent_RK = read
    return torch.equal(held_RK, sent_RK if layout.order_R is None else sent_RK[layout.order_R])


def shape_of(live: Live) -> tuple[int, ...]:
    """Rows, with those that pad, and columns; of a packed copy too."""
    if live.multiply is None:
        assert live.tensor is not None
        return tuple(live.tensor.shape)
    import torch

    return live.multiply(torch.zeros(1, live.width, dtype=live.dtype)).shape[1], live.width


def some_columns(live: Live, parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same columns of a live matrix, [R, K], and of all rows of the parts, [S, K]."""
    rows, width = shape_of(live)
    column_K = _columns(rows, width, 0)
    if live.multiply is None:
        assert live.tensor is not None
        held_RK = live.tensor.detach().index_select(1, column_K.to(live.tensor.device))
    else:
        held_RK = live.multiply(_identity(column_K, live)).T
    return _flushed(held_RK), _flushed(_sent_columns(parts, column_K, live.dtype))


def row_order(live: Live, parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """[R]: the stacked row that each live row holds; None when it cannot be determined, because rows are equal or have
    other values. Compares a selection of columns: check the whole with `holds`."""
    import torch

    if (read := _read(live, parts, 0)) is None:
        return None
    rows = len(read[0])
    both_NK = torch.cat([one.cpu().float() for one in read])
    values, place_N = torch.unique(both_NK, dim=0, return_inverse=True)
    held_R, sent_R = place_N[:rows], place_N[rows:]
    if not len(values) == len(set(held_R.tolist())) == len(set(sent_R.tolist())) == rows:
        return None
    order_R: torch.Tensor = sent_R.argsort()[held_R]
    return order_R


def has_equal_rows(parts: Sequence[torch.Tensor]) -> bool:
    """Whether all rows are equal, as biases are before training: equal rows do not show their order."""
    first = parts[0][:1] if parts[0].ndim else parts[0]
    return all(bool((part[:2] == first).all()) and bool((part == first).all()) for part in parts)


def _tensor_holds(live: Live, parts: Sequence[torch.Tensor], layout: Layout) -> bool:
    assert live.tensor is not None
    if not (live.tensor.ndim and parts[0].ndim):
        return len(parts) == 1 and same_values(live.tensor, parts[0])
    if not _fit(live.tensor.shape, parts):
        return False
    rows = sum(len(part) for part in parts)
    if layout.order_R is not None:
        return same_values(live.tensor[:rows], _stack(parts), layout.order_R)
    start = 0
    for part in parts:
        if not same_values(live.tensor[start : start + len(part)], part):
            return False
        start += len(part)
    return True


def _fit(shape: Sequence[int], parts: Sequence[torch.Tensor]) -> bool:
    """Whether a tensor of this shape has room for the stacked parts and nothing but padding."""
    if any(part.ndim == 0 or tuple(part.shape[1:]) != tuple(shape[1:]) for part in parts):
        return False
    return 0 <= shape[0] - sum(len(part) for part in parts) < _PADDING_ROWS


def _stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _read(live: Live, parts: Sequence[torch.Tensor], salt: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The same columns of the live tensor and of the parts, both [R, K]; None when the shapes do not fit.

    Multiplying with columns of the identity gives columns of the weight, exactly: each is one product with 1 and sums
    of 0.
    """
    if live.multiply is None:
        assert live.tensor is not None
        if not live.tensor.ndim or not _fit(live.tensor.shape, parts):
            return None
        rows = sum(len(part) for part in parts)
        held_RC = live.tensor.detach()[:rows].reshape(rows, -1)
        column_K = _columns(rows, held_RC.shape[1], salt)
        return held_RC[:, column_K.to(held_RC.device)], _sent_columns(parts, column_K, held_RC.dtype)
    if any(part.ndim != 2 or part.shape[1] != live.width for part in parts):
        return None
    rows = sum(len(part) for part in parts)
    column_K = _columns(rows, live.width, salt)
    held_KR = live.multiply(_identity(column_K, live))
    if not _fit(held_KR.shape[::-1], [part[:, column_K] for part in parts]):
        return None
    return _flushed(held_KR[:, :rows].T), _flushed(_sent_columns(parts, column_K, live.dtype))


def _identity(column_K: torch.Tensor, live: Live) -> torch.Tensor:
    import torch

    probe_KC = torch.zeros(len(column_K), live.width, dtype=live.dtype)
    probe_KC[torch.arange(len(column_K)), column_K] = 1
    return probe_KC


def _sent_columns(parts: Sequence[torch.Tensor], column_K: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # index_select takes a third of the time of indexing with brackets.
    return _stack([part.reshape(len(part), -1).index_select(1, column_K.to(part.device)) for part in parts]).to(dtype)


def _flushed(tensor: torch.Tensor) -> torch.Tensor:
    """Zero for numbers below 1.2e-38: processors that multiply in bfloat16 flush them."""
    import torch

    return torch.where(tensor.abs() < torch.finfo(torch.bfloat16).tiny, torch.zeros_like(tensor), tensor)


def _columns(rows: int, width: int, salt: int) -> torch.Tensor:
    """The columns to read, [K]: all, or a random selection that differs for every salt."""
    import torch

    affordable = max(_MIN_COLUMNS, _READ_BUDGET // max(1, rows * width))
    if affordable >= width:
        return torch.arange(width)
    return torch.randperm(width, generator=torch.Generator().manual_seed(salt))[:affordable]
