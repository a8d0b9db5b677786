"""What an engine refuses: requests that do not fit the model. Checked before anything is queued."""

from __future__ import annotations

from collections.abc import Sequence

from solon.engines.base import Request
from solon.errors import InputError
from solon.records import LEAST_TEMPERATURE


def check_request(request: Request, *, max_model_len: int, vocab_size: int) -> None:
    """Raises InputError unless the request fits the context and uses the model's own token ids."""
    if not (request.temperature == 0 or request.temperature >= LEAST_TEMPERATURE):
        raise InputError(
            f"request {request.request_id!r} has temperature {request.temperature:g}, expected {LEAST_TEMPERATURE} or "
            "more, or 0 for the likeliest token; between them engines return log-probs of another temperature"
        )
    check_length(request.request_id, request.prompt_token_ids, request.max_tokens, max_model_len)
    check_ids(request.request_id, (*request.prompt_token_ids, *request.label_ids, *request.stop_token_ids), vocab_size)


def check_length(request_id: str, prompt: Sequence[int], max_tokens: int, max_model_len: int) -> None:
    """Raises InputError unless the prompt is not empty and fits, with its answer, into the context."""
    if not prompt or max_tokens < 1 or len(prompt) + max_tokens > max_model_len:
        raise InputError(
            f"request {request_id!r} has {len(prompt)} prompt tokens and {max_tokens} to generate, expected at least "
            f"one of each and at most {max_model_len} together; shorten the prompt, lower `max_tokens` or raise "
            "`max_model_len`"
        )


def check_ids(request_id: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises InputError for ids outside the vocabulary; on a CPU the model would read foreign memory."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        raise InputError(
            f"request {request_id!r} has token ids outside 0 to {vocab_size - 1}; "
            "tokenise it with this model's own tokenizer"
        )
