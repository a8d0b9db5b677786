"""Whether a model can process one prompt for several answers, which form of mask it needs for that, and whether it
takes a plan of segments in place of masks.

The model's name does not decide it. A few random tokens are run row by row, as the model itself masks them, and again
in one microbatch under explicit masks. Sharing is on only where both give the same log-probs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learners.core.attention import FUSED, WITH_PLANS
from learners.core.batch import Batch
from learners.core.config import NetworkConfig
from learners.core.logprobs import logprobs_of
from learners.core.packing import OVERHEAD, Layout, MaskForm, Microbatch

PROBE_WINDOW = 8
"""Window during the probe: rows longer than a real window would cost as much as a step."""
KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose masks are known here."""
TOLERANCE = 0.01
"""Tolerance, as a share of the change from a mask that hides nothing. Rounding is far below it, a wrong mask above."""


@torch.no_grad()
def best_layout(model: Any, config: NetworkConfig, *, device: torch.device) -> Layout:
    """How rollouts are packed for a causal language model: shared where it is exact, else one answer a row; long rows
    by segments where that is exact.

    Eager attention keeps the scores of every head for the backward pass, and a shared row makes them quadratically
    more: models that need it (soft-capped, with sinks) do not share.
    """
    text = model.config.get_text_config()
    overhead = OVERHEAD.get(device.type, OVERHEAD["cuda"])
    plain = Layout(max_tokens=config.max_tokens_per_microbatch, hidden=int(text.hidden_size), overhead=overhead)
    window = getattr(text, "sliding_window", None)
    # Without a window, rows that share nothing need no mask.
    if not (config.share_prompts or window) or model.config._attn_implementation not in FUSED:
        return plain
    if set(getattr(text, "layer_types", None) or ()) - KINDS or getattr(text, "attention_chunk_size", None):
        return plain
    forms: tuple[MaskForm, ...] = ("full",) if window is None else ("by_kind", "windowed", "full")
    errors, of_segments = _errors(model, forms, window, device)
    if not errors:
        return plain
    best = min(errors, key=errors.__getitem__)
    if not errors[best] <= TOLERANCE:
        return plain
    segments = of_segments is not None and of_segments <= TOLERANCE
    return dataclasses.replace(plain, share=config.share_prompts, mask=best, window=window, segments=segments)


def _errors(
    model: Any, forms: Sequence[MaskForm], window: int | None, device: torch.device
) -> tuple[dict[MaskForm, float], float | None]:
    """By form of mask, and by segments: the gap between shared log-probs and those row by row, as a share of the change
    from an open mask; forms that the model does not accept are left out."""
    probe = _probe(int(model.get_input_embeddings().weight.shape[0]))
    some = range(probe.num_rollouts)
    apart = Layout(max_tokens=1)
    # A model this wide shares whenever it can, and a budget this large puts all rows in one microbatch.
    shared = Layout(max_tokens=10**6, hidden=10**6, share=True)
    with _window(model, window):
        if window is not None:
            shared = dataclasses.replace(shared, window=PROBE_WINDOW)
        expected_N = _logprobs(model, apart.microbatches(probe, some, device), probe.num_tokens)
        errors, careless = {}, 0.0

        def error(layout: Layout) -> float | None:
            nonlocal careless
            microbatches = layout.microbatches(probe, some, device)
            try:
                found_N = _logprobs(model, microbatches, probe.num_tokens)
                if not layout.segments:
                    unmasked_N = _logprobs(model, [_unmasked(m) for m in microbatches], probe.num_tokens)
                    careless = max(careless, float((unmasked_N - expected_N).abs().max()))
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
                return None
            return float((found_N - expected_N).abs().max())

        for form in forms:
            if (found := error(dataclasses.replace(shared, mask=form))) is not None:
                errors[form] = found
        of_segments = None
        if model.config._attn_implementation in WITH_PLANS:
            of_segments = error(dataclasses.replace(shared, segments=True, dense=0))
    least = max(careless, 1e-12)
    return {form: found / least for form, found in errors.items()}, None if of_segments is None else of_segments / least


def _unmasked(microbatch: Microbatch) -> Microbatch:
    """The same rows, with every answer visible to the later ones."""
    rows, width = microbatch.input_BT.shape
    causal = torch.ones(width, width, dtype=torch.bool, device=microbatch.input_BT.device).tril()
    causal_B1TT = causal.expand(rows, 1, width, width)
    masks = microbatch.mask_B1TT
    mask_B1TT = dict.fromkeys(masks, causal_B1TT) if isinstance(masks, dict) else causal_B1TT
    return dataclasses.replace(microbatch, mask_B1TT=mask_B1TT)


def _logprobs(model: Any, microbatches: Sequence[Microbatch], num_tokens: int) -> Tensor:
    """Of the response tokens, float32 in any training dtype, [N]."""
    logprobs_N = torch.zeros(num_tokens, device=microbatches[0].input_BT.device)
    for microbatch in microbatches:
        logits_MV = model(**microbatch.model_inputs()).logits.flatten(0, 1)[microbatch.predict_M]
        logprobs_N[microbatch.index_M] = logprobs_of(logits_MV.float(), microbatch.target_M)
    return logprobs_N


@contextmanager
def _window(model: Any, window: int | None) -> Iterator[None]:
    """A short window, so that short rows exceed it: masks are built from the configuration at every forward pass, and
    layers tell attention their own."""
    owners = [] if window is None else [model.config.get_text_config()]
    owners += [module for module in model.modules() if window and vars(module).get("sliding_window") == window]
    for owner in owners:
        owner.sliding_window = PROBE_WINDOW
    try:
        yield
    finally:
        for owner in owners:
            owner.sliding_window = window


def _probe(vocabulary: int) -> Batch:
    """Random tokens: three answers that share a prompt longer than the window, and rows of one answer that are
    shorter and longer than it."""
    rng = np.random.default_rng(0)
    prompts = tuple(rng.integers(0, vocabulary, length) for length in (24, 3, 20))
    group_R = np.array([0, 0, 0, 1, 2])
    length_R = np.array([5, 3, 4, 5, 4])
    tokens = int(length_R.sum())
    return Batch(
        ordinals=(0, 1, 2),
        prompts=prompts,
        group_rewards=(rewards := ((0.0, 0.0, 0.0), (0.0,), (0.0,))),
        baseline_rewards=rewards,
        group_R=group_R,
        member_R=np.array([0, 1, 2, 0, 0]),
        length_R=length_R,
        start_R=np.cumsum(length_R) - length_R,
        reward_R=np.zeros(5, np.float32),
        truncated_R=np.zeros(5, bool),
        token_N=rng.integers(0, vocabulary, tokens),
        behaviour_N=np.zeros(tokens, np.float32),
        version_N=np.zeros(tokens, np.int64),
        rollout_N=np.repeat(np.arange(5), length_R),
    )
