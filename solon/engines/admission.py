"""Checks requests before they are queued: an engine refuses those that do not fit the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from solon.engines.base import Request
from solon.errors import InputError
from solon.records import LEAST_TEMPERATURE

ADD_ROWS = (
    "the tokenizer has tokens that the model lacks: add rows to the embedding (resize_token_embeddings in "
    "Transformers), or have its chat template not write them (chat_template, chat_template_args)"
)
"""The remedy for a template that writes tokens which the embedding lacks."""

Name = Callable[[int], str]
"""The text of a token; empty if the tokenizer has none."""


def check_request(
    request: Request, *, max_model_len: int, vocab_size: int, model: str = "", name: Name | None = None
) -> None:
    """Raises InputError unless the request fits the context and uses the model's own token ids. model and name: used in
    the message."""
    if not (request.temperature == 0 or request.temperature >= LEAST_TEMPERATURE):
        raise InputError(
            f"request {request.request_id!r} has temperature {request.temperature:g}, expected {LEAST_TEMPERATURE} or "
            "more, or 0 for the likeliest token; in between, engines return log-probs of another temperature"
        )
    check_length(request.request_id, request.prompt_token_ids, request.max_tokens, max_model_len)
    ids = (*request.prompt_token_ids, *request.label_ids, *request.stop_token_ids)
    check_ids(f"request {request.request_id!r}", ids, vocab_size, model=model, name=name)


def check_length(request_id: str, prompt: Sequence[int], max_tokens: int, max_model_len: int) -> None:
    """Raises InputError unless the prompt is non-empty and fits into the context together with its answer."""
    if not prompt or max_tokens < 1 or len(prompt) + max_tokens > max_model_len:
        raise InputError(
            f"request {request_id!r} has {len(prompt)} prompt tokens and {max_tokens} to generate, expected at least "
            f"one of each and at most {max_model_len} together; shorten the prompt, lower `max_tokens` or raise "
            "`max_model_len`"
        )


def check_ids(
    whose: str, token_ids: Sequence[int], vocab_size: int, *, model: str = "", name: Name | None = None
) -> None:
    """Raises InputError for ids outside the vocabulary; on a CPU the model would read out of bounds."""
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    beyond = {i for i in token_ids if not 0 <= i < vocab_size}
    is_its_own = name is not None and all(name(i) for i in beyond)
    raise InputError(
        f"{whose} holds {named_tokens(beyond, name or (lambda _: ''))}, expected ids of 0 to {vocab_size - 1}, the "
        f"rows of the embedding of {model or 'the model'}; {ADD_ROWS if is_its_own else 'use its own tokenizer'}"
    )


def named_tokens(ids: Iterable[int], name: Name, most: int = 3) -> str:
    """`the token '<think>' (id 49152)`, or a list of several."""
    ids = sorted(ids)
    shown = ", ".join(f"{text!r} (id {i})" if (text := name(i)) else f"{i}" for i in ids[:most])
    return f"the token{'s' if len(ids) > 1 else ''} {shown}{', …' if len(ids) > most else ''}"
