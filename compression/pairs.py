"""Preference pairs of a compression: read, divided by prompt into parts that never mix, and scored by a model.

`calibration` (rounding with GPTQ), `search` (which units need their bits), `gate` (whether alignment was kept): a
prompt is in one part, whatever else the file holds. P pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from solon.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

Tokens = tuple[int, ...]
Part = Literal["calibration", "search", "gate"]
SHARES: dict[Part, float] = {"calibration": 0.15, "search": 0.35, "gate": 0.50}
ROWS = 32
"""Of a forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prompt with the answer that the aligned model should prefer, and the one it should not."""

    prompt_id: str
    prompt: Tokens
    chosen: Tokens
    """With the tokens that end it."""
    rejected: Tokens
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Log-probs of pairs under one model, nats; of a reward model its rewards."""

    chosen_P: NDArray[np.float64]
    rejected_P: NDArray[np.float64]
    tokens_P: NDArray[np.float64]
    """Tokens of the chosen answers; 0: they have no log-probs."""

    @property
    def margin_P(self) -> NDArray[np.float64]:
        """Of the chosen answer over the rejected one."""
        return self.chosen_P - self.rejected_P

    @property
    def nll(self) -> float | None:
        """Nats a token of the chosen answers: the logarithm of the perplexity. None: of a reward model."""
        tokens = self.tokens_P.sum()
        return float(-self.chosen_P.sum() / tokens) if tokens else None


def part_of(prompt_id: str) -> Part:
    """The part of a prompt, by hash: the same in every file and on every machine."""
    place = _place(prompt_id)
    for part, share in SHARES.items():
        place -= share
        if place < 0:
            return part
    return "gate"


def parted(pairs: Iterable[Pair]) -> dict[Part, list[Pair]]:
    """Pairs by part, in an order of their own; of equal pairs one is used. Raises InputError for an empty part."""
    found: dict[Part, list[Pair]] = {part: [] for part in SHARES}
    for pair in _mixed(dict.fromkeys(pairs)):
        found[part_of(pair.prompt_id)].append(pair)
    if empty := next((part for part, some in found.items() if not some), None):
        prompts = len({pair.prompt_id for some in found.values() for pair in some})
        raise InputError(
            f"got pairs of {prompts} prompts, none of which falls into the part for {empty}, expected some "
            f"hundred prompts; "
            "label more"
        )
    return found


def _mixed(pairs: Iterable[Pair]) -> list[Pair]:
    """In an order that the file does not decide, so that the first ones are a sample: one pair of each prompt, then
    another."""
    by_prompt: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt_id, []).append(pair)
    ranked = [
        (number, _place(name), pair)
        for name, some in by_prompt.items()
        for number, pair in enumerate(sorted(some, key=lambda pair: _place(repr((pair.chosen, pair.rejected)))))
    ]
    return [pair for _, _, pair in sorted(ranked, key=lambda one: one[:2])]


def _place(text: str) -> float:
    """From 0 to 1, by hash."""
    return int.from_bytes(hashlib.sha256(f"compress:{text}".encode()).digest()[:8], "big") / 2**64


def digest_of_pairs(pairs: Sequence[Pair]) -> str:
    """sha256 of token ids, tags and order, first 16 digits."""
    return hashlib.sha256(
        repr([(p.prompt_id, p.prompt, p.chosen, p.rejected, p.tags) for p in pairs]).encode()
    ).hexdigest()[:16]


def scores_of(model: nn.Module, pairs: Sequence[Pair], *, rows: int = ROWS) -> Scores:
    """Teacher-forced log-probs. rows: sequences of one forward pass; it changes results only by rounding."""
    asked = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i][0]) + len(asked[i][1]), i))
    found = np.zeros(len(asked))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        found[chosen] = _logprobs(model, [asked[i] for i in chosen])
    return Scores(
        chosen_P=found[0::2], rejected_P=found[1::2], tokens_P=np.array([float(len(pair.chosen)) for pair in pairs])
    )


def laid_out(rows: Sequence[tuple[Tokens, Tokens]]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with their answers, padded on the right: token ids and attention mask, [R, T], and the places whose next
    token belongs to the answer, [R, T - 1]."""
    import torch

    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids_RT = torch.zeros((len(rows), width), dtype=torch.long)
    mask_RT = torch.zeros((len(rows), width), dtype=torch.long)
    answer_RT = torch.zeros((len(rows), width - 1), dtype=torch.bool)
    for number, (prompt, answer) in enumerate(rows):
        size = len(prompt) + len(answer)
        ids_RT[number, :size] = torch.tensor([*prompt, *answer])
        mask_RT[number, :size] = 1
        answer_RT[number, len(prompt) - 1 : size - 1] = True
    return ids_RT, mask_RT, answer_RT


def _logprobs(model: nn.Module, rows: Sequence[tuple[Tokens, Tokens]]) -> NDArray[np.float64]:
    import torch

    with torch.no_grad():
        found: NDArray[np.float64] = logprobs_of(model, rows).cpu().numpy()
    return found


def logprobs_of(model: nn.Module, rows: Sequence[tuple[Tokens, Tokens]]) -> Tensor:
    """Of each answer after its prompt, on the model's device. [R]"""
    device = next(model.parameters()).device
    ids_RT, mask_RT, answer_RT = (one.to(device) for one in laid_out(rows))
    logits_RTV = model(input_ids=ids_RT, attention_mask=mask_RT).logits.float()
    logprobs_RT = logits_RTV[:, :-1].log_softmax(-1).gather(-1, ids_RT[:, 1:, None])[..., 0].double()
    found: Tensor = logprobs_RT.masked_fill(~answer_RT, 0.0).sum(-1)
    return found
