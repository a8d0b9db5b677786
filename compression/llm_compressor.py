"""Runs llm-compressor: its inputs, its output, and its suppressed logs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression.algorithms import CALIBRATED, Scaled
from compression.loading import model_class, quiet
from solon.engines.model_files import repair_generation_config, warn_of_dropped
from solon.host.file_modes import widen

if TYPE_CHECKING:
    from torch import nn

AWQ_ROWS = 16
"""Sequences of a batch: AWQ computes each block some twenty times with each batch."""


def linear_layers(model: nn.Module, ignore: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that are quantised: all linear ones except `ignore`."""
    from compressed_tensors.utils import match_named_modules

    yield from match_named_modules(model, ["Linear"], list(ignore))


def write_compressed(
    source: Path,
    written: Path,
    *,
    preset: str = "",
    groups: Mapping[str, Any] | None = None,
    algorithm: str,
    scaled: Sequence[Scaled] = (),
    sequences: Sequence[Sequence[int]],
    ignore: Sequence[str],
) -> int:
    """Quantise and save; returns the number of layers that were quantised.

    preset: of all linear layers except `ignore`. groups: schemes of compressed-tensors with the layers that have each;
    all other linear layers are in `ignore`. scaled: what `algorithm` scales before it rounds.
    """
    with quiet():
        import torch
        from llmcompressor import oneshot

        model = (
            model_class(source)
            .from_pretrained(source, dtype="auto", use_safetensors=True, trust_remote_code=False)
            .eval()
        )
        layers = len(list(linear_layers(model, ignore)))
        chosen = {"config_groups": dict(groups)} if groups else {"targets": "Linear", "scheme": preset}
        recipe = _recipe(algorithm, scaled, {**chosen, "ignore": list(ignore)})
        if algorithm in CALIBRATED:
            batches: Any = [
                {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
                for rows in map(torch.tensor, _batches(sequences, AWQ_ROWS if algorithm == "awq" else 1))
            ]
            loader = torch.utils.data.DataLoader(batches, batch_size=None)
            with _unpinned():
                oneshot(model=model, recipe=recipe, dataset=loader, num_calibration_samples=len(batches))
        else:
            oneshot(model=model, recipe=recipe)
        dropped = repair_generation_config(model)
        model.save_pretrained(written, save_compressed=True)
    warn_of_dropped(dropped)
    widen(written)
    return layers


def _batches(sequences: Sequence[Sequence[int]], rows: int) -> list[list[list[int]]]:
    """One row a batch: each sequence whole and in the given order. More: of like lengths, cut to the shortest, so that
    none is padded."""
    given = sequences if rows == 1 else sorted(sequences, key=len)
    groups = [given[first : first + rows] for first in range(0, len(given), rows)]
    return [[list(one[: min(map(len, group))]) for one in group] for group in groups]


def _recipe(algorithm: str, scaled: Sequence[Scaled], chosen: Mapping[str, Any]) -> list[Any]:
    """The modifiers of an algorithm; each reads the calibration data by itself, the second after the first is done."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    if algorithm == "smoothquant":
        moved = [[list(one.layers), one.before] for one in scaled]
        return [SmoothQuantModifier(mappings=moved), GPTQModifier(**chosen)]
    if algorithm == "awq":
        pairs = [AWQMapping(smooth_layer=one.before, balance_layers=list(one.layers)) for one in scaled]
        return [AWQModifier(mappings=pairs), QuantizationModifier(**chosen)]
    return [GPTQModifier(**chosen) if algorithm == "gptq" else QuantizationModifier(**chosen)]


@contextlib.contextmanager
def _unpinned() -> Iterator[None]:
    """Without a GPU, memory cannot be pinned for it, which AWQ does without asking."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.cuda.is_available():
        yield
        return
    pin = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin
