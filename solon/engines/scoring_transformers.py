"""Rewards by Transformers: padded batches of similar length.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

from solon.engines.base import EngineConfig
from solon.engines.device import torch_device
from solon.engines.device_turns import device_key, turn_on_device
from solon.engines.failures import computing
from solon.engines.scoring import Tokens
from solon.engines.tokens import ChatTokenizer
from solon.engines.transformers_model import decompress, library_options, loading_model
from solon.errors import InputError

BATCH_TOKENS = 16384
"""Most tokens of a forward pass, padding included."""


class TransformersScoring:
    """Implements `ScoringEngine`."""

    def __init__(self, config: EngineConfig, *, name: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        self.name = name
        self.tokenizer = ChatTokenizer.load(config.model, trust_remote_code=config.trust_remote_code, settings=config)
        self.max_tokens = config.max_model_len
        self._batch_tokens = config.max_batched_tokens or BATCH_TOKENS
        self._device = torch.device(torch_device(config.device, name))
        with turn_on_device(device_key() if self._device.type == "cuda" else ""), loading_model(config.model):
            options = library_options(config, self._device)
            self._model, info = AutoModelForSequenceClassification.from_pretrained(
                config.model, use_safetensors=True, output_loading_info=True, **options
            )
            decompress(self._model)
        if not hasattr(self._model, "score"):
            raise InputError(
                f"the reward model {config.model!r} is a {type(self._model).__name__} without a head `score`, expected "
                "a decoder with one, whose last token has read the answer; choose another"
            )
        if lacking := sorted(info["missing_keys"]):
            raise InputError(
                f"the reward model {config.model!r} lacks {lacking[0]}, expected all weights: it would be random; "
                "train it first, or fetch all files"
            )
        self._model = self._model.to(self._device).eval().requires_grad_(False)

    @property
    def dtype(self) -> str:
        """See `ScoringEngine`."""
        return str(self._model.dtype).removeprefix("torch.")

    def score(self, sequences: Sequence[Tokens]) -> list[float]:
        """See `ScoringEngine`."""
        import torch

        found = [0.0] * len(sequences)
        for rows in _batches([len(ids) for ids in sequences], self._batch_tokens):
            with torch.inference_mode(), computing(f"engine {self.name}", "scoring"):
                for row, value in zip(rows, self._forward([sequences[row] for row in rows]), strict=True):
                    found[row] = value
        return found

    def close(self) -> None:
        """Free the model."""
        self._model = None
        gc.collect()

    def _forward(self, sequences: Sequence[Tokens]) -> list[float]:
        """The head reads the last token itself: Transformers would look for it by the padding token, which may be the
        one that ends the answer."""
        import torch

        width = max(map(len, sequences))
        ids_BT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in sequences], device=self._device)
        last_B = torch.tensor([len(ids) - 1 for ids in sequences], device=self._device)
        mask_BT = torch.arange(width, device=self._device) <= last_B[:, None]
        model: Any = self._model
        hidden_BTH = model.base_model(input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False)[0]
        chosen_BH = hidden_BTH[torch.arange(len(sequences), device=self._device), last_B]
        rewards: list[float] = model.score(chosen_BH)[:, 0].float().tolist()
        return rewards


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Rows of similar length whose rectangle has at most `most` tokens; a longer row is alone."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        if rows and lengths[rows[0]] * (len(rows) + 1) > most:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
