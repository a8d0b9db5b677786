"""Log-probs of sampled tokens. N tokens, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor


def logprobs_of(logits_NV: Tensor, token_N: Tensor) -> Tensor:
    """Log-probs of the sampled tokens, [N]."""
    return -torch.nn.functional.cross_entropy(logits_NV, token_N, reduction="none")


def logprobs_and_entropy(logits_NV: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the sampled tokens and entropy of their distributions in nats, [N] each, from one
    pass over the vocabulary."""
    logprobs_NV = logits_NV.log_softmax(-1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return logprobs_NV.gather(-1, token_N[:, None])[:, 0], entropy_N
