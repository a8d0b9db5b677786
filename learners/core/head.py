"""Log-probs from the hidden states under a model's head, without the logits of all tokens at once.

A tensor of logits is the largest one of a step: 8,192 tokens of a vocabulary of 150,000 are 4.7 GiB in float32, and
their gradient as much again. Here the head runs on a few tokens at a time, forward and again backward. The gradient of
its weights is added up in float32 whatever the dtype of the computation: sums of rounded sums would drift.

    head = find_head(model)                       # None: the model does something else to its logits
    found = logprobs_through(model, inputs, head, predict_M, Wanted(target_M=target_M, temperature=0.7))

The head runs inside the model's own forward pass, in place of the layer's forward, so that hooks which gather sharded
weights run as they do for the layer itself, and hooks on the model's output see what a loss is computed from.

M response tokens, R tokens of a chunk, H hidden width, V vocabulary, K rank of an adapter, U bytes of a set of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.core.config import CHUNK
from learners.core.logprobs import pieces, scaled, slope_of, values_of
from solon.engines.filters import FLOOR, allowed_tokens
from solon.records import NO_FILTERS, Filters

Beside = Callable[[Tensor], Tensor]
"""A further head: a number for every response token, [M], from the hidden states under the model's own, [M, H]."""


@dataclass(frozen=True, slots=True)
class After:
    """What a model does to the output of its head: logits * scale, then cap * tanh(logits / cap)."""

    scale: float = 1.0
    cap: float = math.inf

    def apply_(self, logits_RV: Tensor) -> Tensor:
        """In place: a copy would be another chunk."""
        if self.scale != 1.0:
            logits_RV.mul_(self.scale)
        return logits_RV if math.isinf(self.cap) else logits_RV.div_(self.cap).tanh_().mul_(self.cap)

    def chain(self, gradient_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """The gradient of the head's output, in place of that of `logits_RV`, the result."""
        if not math.isinf(self.cap):
            gradient_RV *= 1.0 - (logits_RV / self.cap).square_()
        return gradient_RV if self.scale == 1.0 else gradient_RV.mul_(self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to compute from each token's logits."""

    target_M: Tensor
    temperature: float = 1.0
    entropy: bool = False
    filters: Filters = NO_FILTERS
    """Of the sampling: every result is of the distribution over the tokens that they allow, and the target."""
    place_M: Tensor | None = None
    end_ids: Sequence[int] = ()
    """With `place_M`, for `filters.min_tokens`."""
    allowed_MU: Tensor | None = None
    """The tokens of the distribution, as `Found` has them, in place of filters."""
    values: Beside | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Float32, [M] each; None: not requested, or nothing is filtered."""

    logprobs_M: Tensor
    entropy_M: Tensor | None = None
    outside_M: Tensor | None = None
    """True where the filters leave the target out."""
    allowed_MU: Tensor | None = None
    """The allowed tokens with the target, eight in a byte."""
    values_M: Tensor | None = None


def find_head(model: Any) -> After | None:
    """What a causal language model does to the output of its linear head, found by one forward pass; None where it is
    not a scale and a cap, or where the head is not linear.

    No list of names decides it: known numbers take the place of the head's output, and the model's logits must be
    those numbers, scaled and capped; the head's own output must be the product with its weights.
    """
    layer = model.get_output_embeddings()
    if layer is None or _weights(layer) is None:
        return None
    ids_BT = torch.arange(3, device=next(model.parameters()).device)[None]
    kept: list[Tensor] = []

    def ladder(hidden_BTH: Tensor) -> Tensor:
        kept.append(hidden_BTH)
        vocabulary = len(model.get_output_embeddings().weight)
        steps = torch.arange(hidden_BTH.shape[:-1].numel() * vocabulary, device=hidden_BTH.device)
        # Both signs, and powers of 2 from 2^-20 to 2^40, in another order in every row.
        steps = torch.exp2((steps * 7 % 61 - 20).float()) * (1 - 2 * (steps % 2))
        kept.append(steps.view(*hidden_BTH.shape[:-1], vocabulary))
        return kept[-1].clone()  # a model may change its logits in place

    with torch.no_grad():
        try:
            with _forward_of(layer, ladder):
                logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            hidden_BTH, given_BTV = kept
            after = _after(given_BTV, logits_BTV)
            hidden_MH = hidden_BTH.flatten(0, -2)
            rows, own = _product(hidden_MH, *_operands(layer, hidden_MH)), layer(hidden_MH)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            return None
    close = rows.shape == own.shape and float((rows - own).abs().max()) <= 1e-5 * max(1.0, float(own.abs().max()))
    return after if close else None


def logprobs_through(model: Any, inputs: Mapping[str, Any], head: After, predict_M: Tensor, wanted: Wanted) -> Found:
    """Run a causal language model, whose head is `head`, on the inputs: log-probs at the flat positions `predict_M`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = base.get_output_embeddings()
    results: list[tuple[Tensor | None, ...]] = []

    def compute(hidden_BTH: Tensor) -> Tensor:
        hidden_MH = hidden_BTH.flatten(0, 1).index_select(0, predict_M)
        operands = _operands(layer, hidden_MH)
        found = _Chunked.apply(head, wanted, hidden_MH.to(_dtype(hidden_MH)), *operands)  # type: ignore[no-untyped-call]
        results.append((*found, None if wanted.values is None else wanted.values(hidden_MH)))
        return hidden_BTH[..., :1].detach()  # what the model does to its logits, `head` has done

    # First of the hooks on the output, so that those of sharded weights see the results.
    with _forward_of(layer, compute), base.register_forward_hook(lambda *_: results.pop(), prepend=True):
        logprobs_M, entropy_M, outside_M, allowed_MU, values_M = model(**inputs)
    return Found(
        logprobs_M=logprobs_M, entropy_M=entropy_M, outside_M=outside_M, allowed_MU=allowed_MU, values_M=values_M
    )


def values_through(model: Any, inputs: Mapping[str, Any], predict_M: Tensor, values: Beside) -> Tensor:
    """Run a causal language model without its head: the numbers of another head at the flat positions `predict_M`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    results: list[Tensor] = []

    def compute(hidden_BTH: Tensor) -> Tensor:
        results.append(values(hidden_BTH.flatten(0, 1).index_select(0, predict_M)))
        return hidden_BTH[..., :1].detach()

    with (
        _forward_of(base.get_output_embeddings(), compute),
        base.register_forward_hook(lambda *_: results.pop(), prepend=True),
    ):
        values_M: Tensor = model(**inputs)
    return values_M


class _Chunked(torch.autograd.Function):
    """Keeps the hidden states and the sets of allowed tokens; the backward pass computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, head: After, wanted: Wanted, hidden_MH: Tensor, weight_VH: Tensor, *rest: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        tokens, vocabulary = len(hidden_MH), len(weight_VH)
        logprobs_M = torch.empty(tokens, device=hidden_MH.device)
        entropy_M = torch.empty_like(logprobs_M) if wanted.entropy else None
        outside_M, allowed_MU = None, wanted.allowed_MU
        if wanted.filters:
            outside_M = torch.empty(tokens, dtype=torch.bool, device=hidden_MH.device)
            allowed_MU = torch.empty(tokens, -(-vocabulary // 8), dtype=torch.uint8, device=hidden_MH.device)
        for rows, logits_RV in _chunks(head, hidden_MH, weight_VH, *rest):
            for part in pieces(logits_RV):
                at = slice(rows.start + part.start, rows.start + part.start + len(logits_RV[part]))
                some_RV = scaled(logits_RV[part], wanted.temperature)
                if outside_M is not None and allowed_MU is not None:
                    outside_M[at], allowed_MU[at] = _filter(some_RV, wanted, at)
                if allowed_MU is not None:
                    some_RV = some_RV.masked_fill(~_unpacked(allowed_MU[at], vocabulary), FLOOR)
                logprobs_R, entropy_R = values_of(some_RV, wanted.target_M[at], wanted.entropy)
                logprobs_M[at] = logprobs_R
                if entropy_M is not None and entropy_R is not None:
                    entropy_M[at] = entropy_R
            del logits_RV, some_RV  # both may hold the chunk, and the next one is computed then
        ctx.save_for_backward(hidden_MH, weight_VH, *rest, entropy_M, allowed_MU)
        ctx.head, ctx.wanted = head, wanted
        ctx.mark_non_differentiable(*(one for one in (outside_M, allowed_MU) if one is not None))
        ctx.set_materialize_grads(False)
        return logprobs_M, entropy_M, outside_M, allowed_MU

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        if slopes[0] is None and slopes[1] is None:
            return (None,) * 7
        *given, entropy_M, allowed_MU = ctx.saved_tensors
        hidden_MH, weight_VH, *rest = (None if one is None else one.to(given[0].dtype) for one in given)
        assert hidden_MH is not None
        assert weight_VH is not None
        operands = [hidden_MH, weight_VH, *rest]
        head, wanted, sums = ctx.head, ctx.wanted, _Sums(operands, ctx.needs_input_grad[2:])
        for rows, logits_RV in _chunks(head, hidden_MH, weight_VH, *rest):
            for part in pieces(logits_RV):
                at = slice(rows.start + part.start, rows.start + part.start + len(logits_RV[part]))
                some_RV = scaled(logits_RV[part], wanted.temperature)
                if allowed_MU is not None:
                    some_RV = some_RV.masked_fill(~_unpacked(allowed_MU[at], len(weight_VH)), FLOOR)
                slopes_R = tuple(None if slope_M is None else slope_M[at] for slope_M in slopes[:2])
                entropy_R = None if entropy_M is None else entropy_M[at]
                gradient_RV = slope_of(some_RV, wanted.target_M[at], slopes_R, entropy_R)
                if wanted.temperature != 1.0:
                    gradient_RV.div_(wanted.temperature)
                # The gradient takes the place of the logits: a chunk is in memory once.
                logits_RV[part] = head.chain(gradient_RV, logits_RV[part].float())
            sums.add(rows, logits_RV)
            del logits_RV, some_RV
        found = zip(sums.found, given, strict=True)
        return None, None, *(None if total is None else total.to(one.dtype) for total, one in found)


class _Sums:
    """Gradients of the operands of the product, chunk by chunk; those of weights in float32."""

    def __init__(self, operands: Sequence[Tensor | None], needed: Sequence[bool]) -> None:
        self._operands = operands
        by_row = (True, False, False, True, False)
        self.found = [
            torch.zeros_like(one, dtype=one.dtype if rows else torch.float32) if one is not None and need else None
            for one, need, rows in zip(operands, needed, by_row, strict=True)
        ]

    def add(self, rows: slice, slope_RV: Tensor) -> None:
        """The gradient of one chunk of logits."""
        hidden_MH, weight_VH, _, low_MK, up_VK = self._operands
        of_hidden, of_weight, of_bias, of_low, of_up = self.found
        for inputs, weight, of_inputs, of_matrix in (
            (hidden_MH, weight_VH, of_hidden, of_weight),
            (low_MK, up_VK, of_low, of_up),
        ):
            if of_inputs is not None:
                assert weight is not None
                of_inputs[rows] = slope_RV @ weight
            if of_matrix is not None:
                assert inputs is not None
                if slope_RV.dtype == torch.float32:
                    of_matrix.addmm_(slope_RV.T, inputs[rows])
                else:
                    for part in pieces(of_matrix):  # a whole product in 16 bits would be another copy of the head
                        of_matrix[part] += slope_RV[:, part].T @ inputs[rows]
        if of_bias is not None:
            of_bias += slope_RV.sum(0, dtype=torch.float32)


def _chunks(head: After, hidden_MH: Tensor, weight_VH: Tensor, *rest: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Tokens and their logits, a chunk at a time."""
    size = chunk_rows(len(weight_VH), hidden_MH.device)
    bias_V, low_MK, up_VK = (None if one is None else one.to(hidden_MH.dtype) for one in rest)
    weight_VH = weight_VH.to(hidden_MH.dtype)
    for first in range(0, len(hidden_MH), size):
        rows = slice(first, min(first + size, len(hidden_MH)))
        low_RK = None if low_MK is None else low_MK[rows]
        yield rows, head.apply_(_product(hidden_MH[rows], weight_VH, bias_V, low_RK, up_VK))


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Tokens of a chunk."""
    return max(1, CHUNK.get(device.type, CHUNK["cuda"]) // vocabulary)


def _product(
    hidden_RH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, low_RK: Tensor | None, up_VK: Tensor | None
) -> Tensor:
    """The output of the head, with its adapter where it has one."""
    logits_RV = functional.linear(hidden_RH, weight_VH, bias_V)
    return logits_RV if low_RK is None or up_VK is None else logits_RV.addmm_(low_RK, up_VK.T)


def _operands(layer: Any, hidden_MH: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Weights and bias of the head, and input and output matrix of its adapter."""
    found = _weights(layer)
    assert found is not None
    base, adapter = found
    if adapter is None:
        return base.weight, base.bias, None, None
    down, up, scale = adapter
    return base.weight, base.bias, down(hidden_MH.to(down.weight.dtype)).to(_dtype(hidden_MH)) * scale, up.weight


def _weights(layer: Any) -> tuple[nn.Linear, tuple[nn.Linear, nn.Linear, float] | None] | None:
    """The linear layer, and the two halves and the scale of its adapter where one is on; None for another layer."""
    if isinstance(layer, nn.Linear):
        return layer, None
    base = getattr(layer, "base_layer", None)
    if not isinstance(base, nn.Linear) or not hasattr(layer, "lora_A"):
        return None
    if layer.disable_adapters or layer.merged:
        return base, None
    if list(layer.active_adapters) != ["default"] or layer.lora_B["default"].bias is not None or layer.lora_variant:
        return None
    return base, (layer.lora_A["default"], layer.lora_B["default"], float(layer.scaling["default"]))


def _dtype(values: Tensor) -> torch.dtype:
    """Of products with these values here."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


def _after(given: Tensor, logits: Tensor) -> After | None:
    """The scale and cap that make `logits` of `given`; None: something else does."""
    if given.shape != logits.shape:
        return None
    smallest, largest = given.abs().argmin(), given.abs().argmax()
    scale = float(logits.flatten()[smallest] / given.flatten()[smallest])
    most = float(logits.abs().max())
    half = float(logits[given.abs() == given.abs().max() / 2].abs().max())
    after = After(scale=scale, cap=most if half == most else math.inf)
    if not (math.isfinite(scale) and scale and float(logits.flatten()[largest].abs()) == most):
        return None
    expected = after.apply_(given.clone())
    return after if bool(((expected - logits).abs() <= 1e-5 * expected.abs()).all()) else None


@contextmanager
def _forward_of(layer: Any, forward: Any) -> Iterator[None]:
    """The layer computes `forward`; its hooks stay."""
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


_BITS = (1, 2, 4, 8, 16, 32, 64, 128)


def _filter(some_RV: Tensor, wanted: Wanted, at: slice) -> tuple[Tensor, Tensor]:
    """(whether the target is outside, the allowed tokens and the target) of some rows of logits."""
    target_R1 = wanted.target_M[at][:, None]
    place_R = None if wanted.place_M is None else wanted.place_M[at]
    allowed_RV = allowed_tokens(some_RV, wanted.filters, place_N=place_R, end_ids=wanted.end_ids)
    outside_R = ~allowed_RV.gather(1, target_R1)[:, 0]
    return outside_R, _packed(allowed_RV.scatter_(1, target_R1, True))


def _packed(allowed_RV: Tensor) -> Tensor:
    """Eight tokens in a byte, [R, U]."""
    padded_RV = functional.pad(allowed_RV, (0, -allowed_RV.shape[1] % 8))
    bits = torch.tensor(_BITS, dtype=torch.uint8, device=allowed_RV.device)
    return (padded_RV.view(len(allowed_RV), -1, 8) * bits).sum(-1, dtype=torch.uint8)


def _unpacked(allowed_RU: Tensor, vocabulary: int) -> Tensor:
    """True for the allowed tokens, [R, V]."""
    bits = torch.tensor(_BITS, dtype=torch.uint8, device=allowed_RU.device)
    return ((allowed_RU[:, :, None] & bits) != 0).flatten(1)[:, :vocabulary]
