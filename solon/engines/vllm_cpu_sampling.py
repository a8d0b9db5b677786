"""Sampling on a CPU with one random number for a token.

vLLM draws an exponential variable for every entry of the vocabulary, twice for a request with a seed, and the generator
uses one thread: with 49,152 entries that is half the time of a decoding step of a small model. Inverting the cumulative
distribution gives the same distribution from one uniform number; sums are in float64, so that a token's probability is
exact to float32.

B requests, V vocabulary, N blocks of W entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 256


@contextmanager
def one_number_for_a_token() -> Iterator[None]:
    """Active while vLLM builds an engine on a CPU: its sampler chooses its method at that time."""
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    original = TopKTopPSampler.forward_cpu
    TopKTopPSampler.forward_cpu = _forward_cpu
    try:
        yield
    finally:
        TopKTopPSampler.forward_cpu = original


def _forward_cpu(
    self: Any, logits_BV: Tensor, generators: Mapping[int, torch.Generator], k: Tensor | None, p: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    import torch
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    logits_BV = apply_top_k_top_p(logits_BV, k, p)
    returned_BV = None
    if self.logprobs_mode == "processed_logits":
        returned_BV = logits_BV
    if self.logprobs_mode == "processed_logprobs":
        returned_BV = logits_BV.log_softmax(-1, dtype=torch.float32)
        probs_BV = returned_BV.exp()
    else:
        probs_BV = logits_BV.softmax(-1, dtype=torch.float32)
    return draw_tokens(probs_BV, draw_uniforms(len(probs_BV), generators)), returned_BV


def draw_uniforms(number: int, generators: Mapping[int, torch.Generator]) -> Tensor:
    """One number in [0, 1) for each request, from its own generator where it has one; float64, [B]."""
    import torch

    drawn_B = torch.rand(number, dtype=torch.float64)
    for index, generator in generators.items():
        drawn_B[index] = torch.rand((), dtype=torch.float64, generator=generator)
    return drawn_B


def draw_tokens(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes the number; never one of probability 0. int64, [B]."""
    import torch
    from torch.nn import functional

    padding = -probs_BV.shape[1] % BLOCK
    probs_BNW = functional.pad(probs_BV, (0, padding)).reshape(len(probs_BV), -1, BLOCK)
    edges_BN = probs_BNW.sum(-1, dtype=torch.float64).cumsum(-1)
    block_B, rest_B = _invert(edges_BN, uniforms_B * edges_BN[:, -1])
    inner_BW = probs_BNW[torch.arange(len(probs_BV)), block_B].double().cumsum(-1)
    inner_B, _ = _invert(inner_BW, rest_B)
    return block_B * BLOCK + inner_B


def _invert(cumulative_BN: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first place whose sum exceeds the target, and what is left of the target there."""
    import torch
    from torch.nn import functional

    # Rounding may put the target at or above the last sum; the last place may have probability 0.
    below_B = torch.nextafter(cumulative_BN[:, -1], torch.zeros((), dtype=torch.float64))
    target_B = torch.minimum(target_B, below_B)
    place_B = torch.searchsorted(cumulative_BN, target_B[:, None], right=True)[:, 0]
    before_B = functional.pad(cumulative_BN, (1, 0)).gather(1, place_B[:, None])[:, 0]
    return place_B, target_B - before_B
