"""Engines of reward models: one number for a whole conversation, read at its last token.

A reward model is a directory of Transformers' model for sequence classification with one label. Both backends return
the number before any activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from solon.engines.base import EngineConfig
from solon.engines.build import require_vllm
from solon.engines.checkpoint import model_settings, require_model
from solon.engines.tokens import ChatTokenizer
from solon.errors import InputError, loading
from solon.host.priority import give_way
from solon.models.facts import num_labels

Tokens = Sequence[int]


class ScoringEngine(Protocol):
    """Build and use it in one thread."""

    tokenizer: ChatTokenizer

    @property
    def dtype(self) -> str:
        """The type it computes in."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest conversation."""
        ...

    def score(self, sequences: Sequence[Tokens]) -> list[float]:
        """Rewards of whole conversations, the tokens that end the last answer included. Raises EngineFailedError."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def build_scoring_engine(config: EngineConfig, *, name: str) -> ScoringEngine:
    """Loads the reward model. Raises InputError when it or its backend is not available."""
    require_model(config)
    require_one_label(config)
    if config.quantization != "none":
        raise InputError(
            f"quantization = {config.quantization!r} for the reward model {config.model!r}, expected 'none': its head "
            "would be quantised too; leave it out"
        )
    if config.gives_way:
        give_way()
    remedy = "check its config.json and its weights"
    if config.backend == "vllm":
        remedy += '; vLLM loads reward models of some families only (not of Gemma 3): else set backend = "transformers"'
    with loading(f"{name}: the reward model {config.model!r}", remedy=remedy):
        if config.backend == "transformers":
            from solon.engines.scoring_transformers import TransformersScoring

            return TransformersScoring(config, name=name)
        require_vllm(config, name)
        from solon.engines.scoring_vllm import VllmScoring

        return VllmScoring(config, name=name)


def require_one_label(config: EngineConfig) -> None:
    """Raises InputError for a classifier."""
    settings = model_settings(config)
    labels = num_labels(settings)
    if labels != 1:
        raise InputError(
            f"the reward model {config.model!r} has {labels} labels, expected one: a reward is a number; choose a "
            "reward model"
        )
