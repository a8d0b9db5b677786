"""How much each weight matters: to the preferences of a model, to the text it writes, and by size alone.

    alignment  mean over pairs |w dL/dw|, L = -(log p(chosen) - log p(rejected)) / tokens
    utility    mean over pairs |w dL/dw|, L = -log p(chosen) / tokens
    wanda      |w| times the norm of its input (arXiv:2306.11695)
    magnitude  |w|

The first two are first-order estimates of the change when the weight is removed (SNIP, arXiv:1810.02340), as in studies
of the weights that safety depends on (arXiv:2402.05162). The loss of DPO is not used: it is flat where preferences are
learned, and would hide the weights that carry them. Absolute values are taken pair by pair: means of gradients cancel.
B pairs of a batch, T positions, O outputs and I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compression.pairs import Pair, laid_out, logprobs_of
from compression.units import Unit

PAIRS = 8
"""Of a batch."""
Kind = Literal["alignment", "utility", "wanda", "magnitude"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Scores of every weight of one matrix, [O, I] each."""

    alignment: Tensor
    utility: Tensor
    wanda: Tensor
    magnitude: Tensor


def importance_of(model: nn.Module, units: Sequence[Unit], pairs: Sequence[Pair]) -> dict[str, Importance]:
    """Scores of the matrices of all units by their names. Costs a forward and two backward passes over the pairs."""
    layers = dict(model.named_modules())
    names = [matrix.name for unit in units for matrix in unit.matrices]
    watched = {name: _Watched(layers[name]) for name in names}
    # Gradients of activations are needed and none of weights: it is enough that the first activation asks for one.
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]  # Transformers' method
    asked = embedding.weight.requires_grad
    embedding.weight.requires_grad_(True)
    try:
        with ExitStack() as stack:
            for one in watched.values():
                stack.callback(one.hook().remove)
            for start in range(0, len(pairs), PAIRS):
                _measure(model, pairs[start : start + PAIRS], watched)
    finally:
        embedding.weight.requires_grad_(asked)
    return {name: one.importance(len(pairs)) for name, one in watched.items()}


def _measure(model: Any, pairs: Sequence[Pair], watched: Mapping[str, _Watched]) -> None:
    """Add the scores of some pairs."""
    losses, mask_RT = losses_of(model, pairs)
    count = len(pairs)
    for one in watched.values():
        one.add_inputs(mask_RT)
    for kind, loss in zip(("alignment", "utility"), losses, strict=True):
        outputs = [one.output for one in watched.values()]
        gradients = torch.autograd.grad(loss, outputs, retain_graph=kind == "alignment")
        for one, gradient in zip(watched.values(), gradients, strict=True):
            one.add_gradient(kind, gradient, count)
    for one in watched.values():
        one.forget()


def losses_of(model: nn.Module, pairs: Sequence[Pair]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The losses of alignment and of utility, summed over pairs, and the attention mask of the rows that were run: the
    chosen answers, then the rejected ones, [2B, T]."""
    rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    logprobs_R = logprobs_of(model, rows)
    chosen_B, rejected_B = logprobs_R[: len(pairs)], logprobs_R[len(pairs) :]
    tokens_B = torch.tensor([len(pair.chosen) for pair in pairs])
    losses = (-(chosen_B - rejected_B) / tokens_B).sum(), (-chosen_B / tokens_B).sum()
    return losses, laid_out(rows)[1]


class _Watched:
    """A linear layer with the inputs and outputs of its last forward pass, and sums over pairs."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._weight_OI: Tensor = layer.weight.detach().float()
        self._sums = {kind: torch.zeros_like(self._weight_OI) for kind in ("alignment", "utility")}
        self._squares_I = torch.zeros(self._weight_OI.shape[1])
        self._input: Tensor | None = None
        self.output: Tensor = self._weight_OI

    def hook(self) -> Any:
        """Keep inputs and outputs of forward passes."""

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._input, self.output = inputs[0].detach().float(), output

        return self._layer.register_forward_hook(keep)

    def add_inputs(self, mask: Tensor) -> None:
        assert self._input is not None
        self._squares_I += (self._input.square() * mask[..., None]).sum((0, 1))

    def add_gradient(self, kind: str, gradient: Tensor, count: int) -> None:
        """gradient: of the output, rows of the chosen answers first."""
        assert self._input is not None
        for pair in range(count):
            of_pair_OI = torch.einsum("bto,bti->oi", gradient[pair::count].float(), self._input[pair::count])
            self._sums[kind] += (of_pair_OI * self._weight_OI).abs_()

    def forget(self) -> None:
        self._input, self.output = None, self._weight_OI

    def importance(self, pairs: int) -> Importance:
        size_OI = self._weight_OI.abs()
        return Importance(
            alignment=self._sums["alignment"] / pairs,
            utility=self._sums["utility"] / pairs,
            wanda=size_OI * self._squares_I.sqrt(),
            magnitude=size_OI,
        )
