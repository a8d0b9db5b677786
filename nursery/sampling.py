"""Answers sampled from a grown policy at temperature 1, many conversations at once."""

# B conversations, T token positions, S positions in the cache, H heads, D head width

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nursery.language import WordEncoder
from nursery.model import TinyModel
from solon.records import Prompt

MAX_TOKENS = 24


@torch.no_grad()
def sample(
    model: TinyModel, prompt_ids: Sequence[Sequence[int]], *, end_id: int, pad_id: int, seed: int
) -> list[list[int]]:
    """Token ids of one answer to every prompt, the end-of-turn token included where it came."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.tensor([len(ids) for ids in prompt_ids])
    rows, width = len(prompt_ids), int(lengths_B.max())
    ids_BT = torch.full((rows, width), pad_id)
    for row, ids in enumerate(prompt_ids):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
    shape = model.shape
    cache = torch.zeros(shape.layers, 2, rows, shape.kv_heads, width + MAX_TOKENS, shape.head_dim)
    logits_BTV = _advance(model, ids_BT, torch.arange(width).expand(rows, width), cache)
    logits_BV = logits_BTV[torch.arange(rows), lengths_B - 1]
    drawn: list[Tensor] = []
    for step in range(MAX_TOKENS):
        next_B1 = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)
        drawn.append(next_B1)
        logits_BV = _advance(model, next_B1, (lengths_B + step)[:, None], cache)[:, 0]
    answers: list[list[int]] = torch.cat(drawn, dim=1).tolist()
    return [ids[: ids.index(end_id) + 1] if end_id in ids else ids for ids in answers]


def sample_texts(model: TinyModel, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
    """One answer in words to every prompt."""
    encoder = WordEncoder()
    ids = [encoder.encode_chat(p.messages) for p in prompts]
    drawn = sample(model, ids, end_id=encoder.eos_token_id, pad_id=encoder.pad_id, seed=seed)
    return [encoder.decode(answer) for answer in drawn]


def _advance(model: TinyModel, ids_BT: Tensor, positions_BT: Tensor, cache: Tensor) -> Tensor:
    """Run new tokens through the network; keys and values join the cache at their positions.

    A position holds the right key when it is first looked at: right-hand padding of a prompt is overwritten
    by the answer before any later position sees it.
    """
    view = model.view(positions_BT)
    rows_B1 = torch.arange(len(ids_BT))[:, None]
    mask_BTS = torch.arange(cache.shape[-2])[None, None] <= positions_BT[:, :, None]
    x_BTW = model.model.embed_tokens(ids_BT)
    for index, layer in enumerate(model.layers):
        attention = layer.self_attn
        q_BHTD, k_BHTD, v_BHTD = attention.project(layer.input_layernorm(x_BTW), view)
        keys, values = cache[index]
        keys[rows_B1, :, positions_BT] = k_BHTD.transpose(1, 2)
        values[rows_B1, :, positions_BT] = v_BHTD.transpose(1, 2)
        x_BTW = x_BTW + attention.attend(q_BHTD, keys, values, mask_BTS)
        x_BTW = x_BTW + layer.mlp(layer.post_attention_layernorm(x_BTW))
    return model.logits(x_BTW)
