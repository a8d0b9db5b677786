"""Which share of a published tensor a rank holds: rows of what is divided by outputs, columns of what is divided by
inputs, rows of the vocabulary. Norms are whole on every rank.

Several layouts are tried, and the one counts whose values are there: a guess that is wrong is not believed.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from solon.engines.live_values import Cut, Layout, Live, has_equal_rows, holds, shape_of, some_columns
from solon.engines.ranks.meeting import EngineRanks

if TYPE_CHECKING:
    import torch


def is_a_share(live: Live, parts: Sequence[torch.Tensor]) -> bool:
    """Whether the live tensor has fewer elements than its parts."""
    elements = 1
    for length in shape_of(live):
        elements *= length
    return elements < sum(part.numel() for part in parts)


def layout_of_share(live: Live, parts: Sequence[torch.Tensor], ranks: EngineRanks) -> Layout | None:
    """How a rank's tensor is made of the file's; None when that cannot be determined."""
    found = [layout for layout in _layouts(live, parts, ranks) if holds(live, parts, layout, salt=0)]
    if len(found) == 1:
        # Equal rows, such as those of a new bias, do not show which of them a joined tensor took.
        is_sure = len(parts) == 1 or not has_equal_rows(parts)
        return found[0] if is_sure else None
    return None if found else _found_by_rows(live, parts)


def _layouts(live: Live, parts: Sequence[torch.Tensor], ranks: EngineRanks) -> Iterator[Layout]:
    shape = shape_of(live)
    if all(part.ndim == len(shape) for part in parts) and shape:
        for cut in _cuts(shape, [tuple(part.shape) for part in parts], ranks):
            yield Layout("stacked", cut=cut)
    if len(shape) == 2 and all(part.ndim == 2 for part in parts):
        for cut in _cuts(shape, [tuple(part.shape)[::-1] for part in parts], ranks):
            yield Layout("transposed", cut=cut)


def _cuts(shape: Sequence[int], parts: Sequence[tuple[int, ...]], ranks: EngineRanks) -> list[Cut]:
    """Cuts after which the parts have this shape, rows that pad apart."""
    if any(part[1:2] != tuple(shape[1:2]) for part in parts):
        if all(part[1] == shape[1] * ranks.size for part in parts) and len(shape) == 2:
            return [Cut(columns=_piece(parts[0][1], ranks.rank, ranks.size))]
        return []
    cuts = []
    for pieces in _divisors(ranks.size):
        # With fewer heads of keys and values than ranks, several ranks hold the same one.
        counts = [ranks.size, *[pieces] * (len(parts) - 1)]
        if all(part[0] % count == 0 for part, count in zip(parts, counts, strict=True)):
            rows = [
                (number, *_piece(part[0], ranks.rank * count // ranks.size, count))
                for number, (part, count) in enumerate(zip(parts, counts, strict=True))
            ]
            if sum(last - first for _, first, last in rows) == shape[0]:
                cuts.append(Cut(rows=tuple(rows)))
    if len(parts) == 1:
        # A vocabulary is padded before it is divided, so that only the last ranks have rows that pad.
        first = min(parts[0][0], ranks.rank * shape[0])
        cuts.append(Cut(rows=((0, first, min(parts[0][0], first + shape[0])),)))
    return list(dict.fromkeys(cuts))


def _found_by_rows(live: Live, parts: Sequence[torch.Tensor]) -> Layout | None:
    """Rows of what the file holds as one tensor (joined queries, keys and values), found by their values."""
    shape = shape_of(live)
    if len(shape) != 2 or any(part.ndim != 2 for part in parts):
        return None
    forms: tuple[tuple[Literal["stacked", "transposed"], list[torch.Tensor]], ...] = (
        ("stacked", list(parts)),
        ("transposed", [part.T for part in parts]),
    )
    for form, given in forms:
        if all(part.shape[1] == shape[1] for part in given) and (pieces := _pieces(live, given)):
            layout = Layout(form, cut=Cut(rows=pieces))
            if holds(live, parts, layout, salt=0):
                return layout
    return None


def _pieces(live: Live, parts: Sequence[torch.Tensor]) -> tuple[tuple[int, int, int], ...]:
    """Runs of the parts' rows that the live rows hold; empty when a row cannot be told from another."""
    import torch

    held_RK, sent_SK = (one.cpu().float() for one in some_columns(live, parts))
    values, place_N = torch.unique(torch.cat([held_RK, sent_SK]), dim=0, return_inverse=True)
    held_R, sent_S = place_N[: len(held_RK)].tolist(), place_N[len(held_RK) :].tolist()
    where = {place: row for row, place in enumerate(sent_S)}
    if len(where) < len(sent_S) or any(place not in where for place in held_R):
        return ()
    starts = [0, *itertools.accumulate(len(part) for part in parts)]
    pieces: list[tuple[int, int, int]] = []
    for place in held_R:
        number = bisect.bisect_right(starts, where[place]) - 1
        row = where[place] - starts[number]
        if pieces and pieces[-1][0] == number and pieces[-1][2] == row:
            pieces[-1] = (number, pieces[-1][1], row + 1)
        else:
            pieces.append((number, row, row + 1))
    return tuple(pieces)


def _piece(length: int, number: int, pieces: int) -> tuple[int, int]:
    return length * number // pieces, length * (number + 1) // pieces


def _divisors(number: int) -> list[int]:
    return [one for one in range(number, 0, -1) if number % one == 0]
