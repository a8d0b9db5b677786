"""Which weights are set to 0. Masks are of one matrix: True is kept. O outputs and I inputs of a matrix.

Rows are pruned by the same share, as Wanda does: a row is what one output is computed from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compression.pruning.importance import Importance
from compression.pruning.plan import Method
from compression.units import Unit

ALIGNMENT_SHARE = 0.5
"""Of the rank by alignment in the score of the method `alignment`."""
WANDA_SHARE = 0.25
"""Of the rank by Wanda in it; the rest is the rank by utility."""
PROTECTED = 0.05
"""Share of all weights, those that matter most to alignment, that the method `alignment` removes last."""
Masks = dict[str, Tensor]


def masks_of(found: Mapping[str, Importance], *, sparsity: float, method: Method) -> Masks:
    """Masks that remove this share of every row. The method `alignment` removes protected weights last: only of a row
    that has more of them than it keeps."""
    protected = top_weights({name: one.alignment for name, one in found.items()}, PROTECTED)
    masks = {}
    for name, one in found.items():
        score_OI = _score(one, method)
        if method == "alignment":
            score_OI = score_OI + 2.0 * protected[name]  # scores are at most 1
        masks[name] = _largest_of_rows(score_OI, 1 - sparsity)
    return masks


def top_weights(scores: Mapping[str, Tensor], share: float) -> Masks:
    """True for the weights of the largest scores, by this share of all weights of the model."""
    whole = torch.cat([one.flatten() for one in scores.values()])
    count = int(share * len(whole))
    if not count:
        return {name: torch.zeros_like(one, dtype=torch.bool) for name, one in scores.items()}
    least = whole.kthvalue(len(whole) - count + 1).values
    return {name: (one >= least) & (one > 0) for name, one in scores.items()}


def alignment_only(aligned: Mapping[str, Tensor], useful: Mapping[str, Tensor], *, share: float) -> Masks:
    """True for weights whose first scores are among the top and whose second ones are not (arXiv:2402.05162).

    aligned: importance to what must not be lost, such as to the text of refusals; useful: to other text. Without these
    weights a model should lose the first and keep the second: a test that the scores mean something.
    """
    first, second = top_weights(aligned, share), top_weights(useful, share)
    return {name: first[name] & ~second[name] for name in first}


def cubic(step: int, steps: int, last: float) -> float:
    """Sparsity after a step of a gradual pruning: fast at first, then slowly to `last` (arXiv:1710.01878).

    >>> [round(cubic(step, 4, 0.5), 3) for step in (1, 2, 3, 4)]
    [0.289, 0.438, 0.492, 0.5]
    """
    return last * (1 - (1 - step / steps) ** 3)


def _score(one: Importance, method: Method) -> Tensor:
    if method != "alignment":
        found: Tensor = getattr(one, method)
        return found
    rest = 1 - ALIGNMENT_SHARE - WANDA_SHARE
    return ALIGNMENT_SHARE * _ranks(one.alignment) + rest * _ranks(one.utility) + WANDA_SHARE * _ranks(one.wanda)


def _ranks(score_OI: Tensor) -> Tensor:
    """From 0 to 1 in each row."""
    return score_OI.argsort(-1).argsort(-1) / max(1, score_OI.shape[-1] - 1)


def _largest_of_rows(score_OI: Tensor, share: float) -> Tensor:
    kept = round(share * score_OI.shape[-1])
    mask_OI = torch.zeros_like(score_OI, dtype=torch.bool)
    return mask_OI.scatter_(-1, score_OI.topk(kept, dim=-1).indices, True) if kept else mask_OI


@contextmanager
def masked(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Weights outside of the masks are 0 and get no gradient, so that an optimiser without weight decay leaves them."""
    set_to_zero(model, masks)
    layers: dict[str, Any] = dict(model.named_modules())
    hooks = [layers[name].weight.register_hook(partial(torch.mul, mask_OI)) for name, mask_OI in masks.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def of_zeros(model: nn.Module, units: Sequence[Unit]) -> Masks:
    """Masks that keep the zeros of a pruned model."""
    layers: dict[str, Any] = dict(model.named_modules())
    return {matrix.name: layers[matrix.name].weight.detach() != 0 for unit in units for matrix in unit.matrices}


@torch.no_grad()
def set_to_zero(model: nn.Module, masks: Masks) -> None:
    """Remove the weights outside of the masks for good."""
    layers: dict[str, Any] = dict(model.named_modules())
    for name, mask_OI in masks.items():
        layers[name].weight.mul_(mask_OI)
