"""A batch of unfinished answers: one key-value cache with changing rows.

Shapes: B rows, T cached positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class KvBatch:
    """Left-padded rows of different lengths in one cache.

    Rows are in joining order: `prefill(..., keep=...)` appends, `select` keeps a subset.
    """

    def __init__(self, model: Any) -> None:
        import torch

        self._model = model
        self._device = next(model.parameters()).device
        self._cache: Any = None
        self._mask_BT = torch.zeros(0, 0, dtype=torch.long, device=self._device)

    def prefill(self, prompts: Sequence[Sequence[int]], *, keep: Sequence[int]) -> torch.Tensor:
        """Reads the prompts; returns the logits after each, [B, V]. Rows in `keep` join the batch."""
        import torch

        longest = max(len(prompt) for prompt in prompts)
        ids_BT = torch.tensor([[*[0] * (longest - len(p)), *p] for p in prompts], device=self._device)
        mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        cache: Any = _new_cache() if keep else None
        output = self._forward(ids_BT, mask_BT, cache)
        if keep:
            rows = torch.tensor(keep, device=self._device)
            if len(keep) < len(prompts):
                cache.batch_select_indices(rows)
            self._join(cache, mask_BT[rows])
        return output

    def decode(self, last_tokens: Sequence[int]) -> torch.Tensor:
        """Feeds every row its newest token; returns the logits after it, [B, V]."""
        import torch

        ids_B1 = torch.tensor(last_tokens, device=self._device)[:, None]
        self._mask_BT = torch.nn.functional.pad(self._mask_BT, (0, 1), value=1)
        return self._forward(ids_B1, self._mask_BT, self._cache)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows, and only as many columns as the longest of them needs."""
        import torch

        if not rows:
            self._cache, self._mask_BT = None, self._mask_BT[:0, :0]
            return
        index = torch.tensor(rows, device=self._device)
        mask_BT = self._mask_BT[index]
        first = int(mask_BT.any(0).int().argmax())
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, first:]
            layer.values = layer.values[index, :, first:]
        self._mask_BT = mask_BT[:, first:]

    def _forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, cache: Any) -> torch.Tensor:
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        output = self._model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
        logits_BV: torch.Tensor = output.logits[:, -1]
        return logits_BV

    def _join(self, cache: Any, mask_BT: torch.Tensor) -> None:
        import torch

        if self._cache is None:
            self._cache, self._mask_BT = cache, mask_BT
            return
        width = max(mask_BT.shape[1], self._mask_BT.shape[1])
        self._mask_BT = torch.cat([_pad_columns(m, width, 1) for m in (self._mask_BT, mask_BT)])
        for old, new in zip(self._cache.layers, cache.layers, strict=True):
            old.keys = torch.cat([_pad_columns(k, width, 2) for k in (old.keys, new.keys)])
            old.values = torch.cat([_pad_columns(v, width, 2) for v in (old.values, new.values)])


def _new_cache() -> Any:
    from transformers import DynamicCache

    # Without the model's config every layer keeps all positions, also those with a sliding window (their mask hides
    # positions outside it), so that rows of different ages can be joined.
    return DynamicCache()


def _pad_columns(tensor: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    missing = width - tensor.shape[axis]
    if missing == 0:
        return tensor
    import torch

    shape = list(tensor.shape)
    shape[axis] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=axis)
