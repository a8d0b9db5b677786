"""How models are loaded here: their class of Transformers, and without the output of libraries."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from solon.models.facts import is_reward_model


def model_class(source: Path) -> Any:
    """The class of Transformers that reads a model: that of reward models for one, else that of language models."""
    import transformers

    return (
        transformers.AutoModelForSequenceClassification
        if is_reward_model(str(source))
        else (transformers.AutoModelForCausalLM)
    )


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
