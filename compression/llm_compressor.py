"""Runs llm-compressor: its inputs, its output, and its suppressed logs."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.engines.model_files import repair_generation_config, warn_of_dropped
from solon.host.file_modes import widen
from solon.models.facts import is_reward_model

if TYPE_CHECKING:
    from torch import nn


def model_class(source: Path) -> Any:
    """The class of Transformers that reads a model: that of reward models for one, else that of language models."""
    import transformers

    return (
        transformers.AutoModelForSequenceClassification
        if is_reward_model(str(source))
        else (transformers.AutoModelForCausalLM)
    )


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
    gptq: bool,
    sequences: Sequence[Sequence[int]],
    ignore: Sequence[str],
) -> int:
    """Quantise and save; returns the number of layers that were quantised.

    preset: of all linear layers except `ignore`. groups: schemes of compressed-tensors with the layers that have each;
    all other linear layers are in `ignore`.
    """
    with quiet():
        import torch
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier

        model = (
            model_class(source)
            .from_pretrained(source, dtype="auto", use_safetensors=True, trust_remote_code=False)
            .eval()
        )
        layers = len(list(linear_layers(model, ignore)))
        make = GPTQModifier if gptq else QuantizationModifier
        chosen = {"config_groups": dict(groups)} if groups else {"targets": "Linear", "scheme": preset}
        modifier = make(**chosen, ignore=list(ignore))
        if gptq:
            # Each prompt is a whole sequence of its own: no padding, no truncation, in the given order.
            rows = [torch.tensor([list(ids)]) for ids in sequences]
            batches: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
            loader = torch.utils.data.DataLoader(batches, batch_size=None)
            oneshot(model=model, recipe=modifier, dataset=loader, num_calibration_samples=len(sequences))
        else:
            oneshot(model=model, recipe=modifier)
        dropped = repair_generation_config(model)
        model.save_pretrained(written, save_compressed=True)
    warn_of_dropped(dropped)
    widen(written)
    return layers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the progress bars and logs of the libraries: they concern their internals."""
    # It logs to standard output as soon as it is imported, and standard output belongs to Solon's own commands.
    os.environ.setdefault("LLM_COMPRESSOR_LOG_DISABLED", "true")
    from loguru import logger
    from transformers.utils import logging as progress

    try:
        logger.level("METRIC")
    except ValueError:  # GPTQ logs at a level that its library defines only while its log is on
        logger.level("METRIC", no=38)

    bars = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    tracing = logging.getLogger("torch.fx._symbolic_trace")
    level = tracing.level
    tracing.setLevel(logging.ERROR)
    try:
        # Some progress bars ignore the setting, and saving warns of offloaded layers where there are none.
        with io.StringIO() as unread, contextlib.redirect_stderr(unread), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        tracing.setLevel(level)
        if bars:
            progress.enable_progress_bar()
