"""The context length of an engine: the configured length, or the model's context if that is shorter."""

from __future__ import annotations

from typing import TypeVar

from solon.engines.base import EngineConfig, EngineOptions
from solon.errors import InputError
from solon.models.facts import context_of

DEFAULT = int(EngineOptions.model_fields["max_model_len"].default)
Options = TypeVar("Options", bound=EngineOptions)


def fit_length(
    options: Options, context: int | None, *, where: str = "max_model_len", default: int = DEFAULT
) -> Options:
    """Options that fit a model with this context. A default length is lowered to it; a configured one raises
    InputError.

    where: the setting, for messages. default: the length that stands for no choice.

    >>> fit_length(EngineOptions(), 256).max_model_len
    256
    """
    if context is None or options.max_model_len <= context:
        return options
    if options.max_model_len != default:
        raise InputError(
            f"{where} = {options.max_model_len} exceeds the model's context of {context} tokens; lower it, or leave it "
            "out"
        )
    return options.model_copy(update={"max_model_len": context})


def engine_config(model: str, options: EngineOptions, *, seed: int = 0, default: int = DEFAULT) -> EngineConfig:
    """The engine of a model, its length fitted to the model's context. Raises InputError."""
    fitted = fit_length(options, context_of(model), where=f"max_model_len of {model}", default=default)
    return EngineConfig(model=model, seed=seed, **fitted.model_dump(include=set(EngineOptions.model_fields)))


def lowered(engine: EngineConfig, options: EngineOptions) -> str | None:
    """A note for a user who configured a longer engine; None: it has the configured length."""
    if engine.max_model_len == options.max_model_len:
        return None
    return f"max_model_len is {engine.max_model_len}, the context of {engine.model}"
