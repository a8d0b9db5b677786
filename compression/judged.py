"""Answers that a model writes, for the figures of the gate that no log-prob shows: text that is empty or repeats
itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compression.pairs import Pair
from solon.evaluation.degenerate import degenerate

if TYPE_CHECKING:
    from torch import nn

    from solon.engines.tokens import ChatTokenizer

ROWS = 32
MOST_TOKENS = 64
"""Of an answer: repetition shows early."""


def spoilt(
    model: nn.Module, pairs: Sequence[Pair], tokenizer: ChatTokenizer, *, most_tokens: int = MOST_TOKENS
) -> NDArray[np.float64]:
    """1 where the greedy answer to a pair's prompt is empty or repeats itself. [P]"""
    found = []
    for start in range(0, len(pairs), ROWS):
        answers = written(model, [pair.prompt for pair in pairs[start : start + ROWS]], tokenizer, most_tokens)
        found += [float(bool(degenerate(answer))) for answer in answers]
    return np.array(found)


def written(
    model: nn.Module, prompts: Sequence[Sequence[int]], tokenizer: ChatTokenizer, most_tokens: int
) -> list[str]:
    """Greedy answers of a model to prompts of token ids."""
    import torch

    width = max(map(len, prompts))
    ids_RT = torch.full((len(prompts), width), tokenizer.turn_end_id)
    mask_RT = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):  # padded on the left: the answers begin together
        ids_RT[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_RT[row, width - len(prompt) :] = 1
    with torch.no_grad():
        ids_RN = model.generate(  # type: ignore[operator]  # Transformers' method
            input_ids=ids_RT,
            attention_mask=mask_RT,
            max_new_tokens=most_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=[tokenizer.turn_end_id, tokenizer.eos_token_id],
            pad_token_id=tokenizer.turn_end_id,
        )
    return [tokenizer.read_answer(row[width:].tolist()).text for row in ids_RN]
