"""Embeddings of texts by a Hugging Face encoder: the mean of its last hidden states, scaled to length one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solon.errors import InputError

BATCH = 64
MAX_TOKENS = 512


class EncoderEmbed:
    """`rows_ND = await EncoderEmbed("org/encoder")(texts)`. Raises InputError when the model is not an encoder.

    Texts beyond `MAX_TOKENS` tokens are cut. N texts, D dimensions.
    """

    def __init__(self, model: str) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        self._lock = threading.Lock()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            self._model: Any = AutoModel.from_pretrained(model, use_safetensors=True, trust_remote_code=False)
            self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self._model.to(self._device).eval()
            positions = int(getattr(self._model.config, "max_position_embeddings", MAX_TOKENS))
            self._longest = min(MAX_TOKENS, int(self._tokenizer.model_max_length), positions)
            rows_ND = self._embed(["a", "a text that is longer"])
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(_refusal(model, str(error))) from None
        if not np.isfinite(rows_ND).all():
            raise InputError(_refusal(model, "its embeddings are not finite"))

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return await asyncio.to_thread(self._embed, list(texts))

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        rows = []
        for start in range(0, len(texts), BATCH):
            with self._lock:  # a tokenizer shared by two threads fails to pad and truncate at once ("Already borrowed")
                batch = self._tokenizer(
                    texts[start : start + BATCH],
                    padding=True,
                    truncation=True,
                    max_length=self._longest,
                    return_tensors="pt",
                ).to(self._device)
            with torch.inference_mode():
                states_NTD = self._model(**batch).last_hidden_state.float()
            mask_NT1 = batch["attention_mask"].unsqueeze(-1).float()
            mean_ND = (states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1)
            rows.append(torch.nn.functional.normalize(mean_ND, dim=-1).cpu().numpy())
        rows_ND: NDArray[np.float32] = np.concatenate(rows).astype(np.float32)
        return rows_ND


def _refusal(model: str, what: str) -> str:
    return (
        f"{model!r} cannot be used for embeddings: {what}; expected a Hugging Face encoder with safetensors, "
        "such as a sentence encoder of the BERT family; name another one"
    )
