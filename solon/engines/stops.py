"""Strings that end an answer.

Engines write tokens, not text, so the newest tokens are decoded after every step. The sampled tokens stay unchanged,
including those of the stop string: they are trained. The text ends before the stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from solon.engines.base import Request, TokenizerLike
    from solon.records import Sampling

SPARE = 8
"""Tokens decoded beyond those that a stop string can span: the first tokens of a window may decode differently."""


def stops_of(tokenizer: TokenizerLike, sampling: Sampling) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Strings to look for in the text, and ids that end an answer.

    A string that is one special token never appears in a text: its id is looked for instead.
    """
    texts, ids = [], list(sampling.stop_token_ids)
    for text in sampling.stop:
        encoded = tokenizer.encode(text)
        if len(encoded) == 1 and not tokenizer.decode(encoded, is_raw=True):
            ids += encoded
        else:
            texts.append(text)
    return tuple(texts), tuple(dict.fromkeys(ids))


def end_ids_of(model: str, sampling: Sampling) -> tuple[int, ...]:
    """All tokens that end an answer of a model, as its engine sees them."""
    from solon.engines.base import EngineConfig
    from solon.engines.checkpoint import stop_token_ids
    from solon.engines.tokens import ChatTokenizer

    tokenizer = ChatTokenizer.load(model)
    own = stop_token_ids(EngineConfig(model=model), tokenizer.eos_token_id)
    return tuple(dict.fromkeys((*own, *stops_of(tokenizer, sampling)[1])))


def is_stopped(tokenizer: TokenizerLike, request: Request, written: Sequence[int]) -> bool:
    """Whether the newest token completes a stop string. written: what this engine wrote of the answer."""
    if not request.stop:
        return False
    before = request.prompt_token_ids[len(request.prompt_token_ids) - request.written :] if request.written else ()
    if len(before) + len(written) <= request.filters.min_tokens:
        return False
    window = max(len(text.encode()) for text in request.stop) + SPARE
    return _stop_place(tokenizer, [*before, *written][-window:], request.stop) is not None


def end_of(
    tokenizer: TokenizerLike, token_ids: list[int], *, stop: Sequence[str], stop_token_ids: Sequence[int]
) -> tuple[list[int], str]:
    """The tokens of a finished answer without a stop token, and the end of its text from the beginning of the stop
    string on, if one ended it."""
    if token_ids and token_ids[-1] in stop_token_ids:
        return token_ids[:-1], ""
    place = _stop_place(tokenizer, token_ids, stop) if stop else None
    return token_ids, "" if place is None else tokenizer.decode(token_ids, is_raw=True)[place:].rstrip()


def _stop_place(tokenizer: TokenizerLike, token_ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """Where the first stop string begins that ends within the text of the last token."""
    if not token_ids:
        return None
    text = tokenizer.decode(token_ids, is_raw=True)
    # A character with missing bytes decodes to replacement characters.
    before = len(tokenizer.decode(token_ids[:-1], is_raw=True).rstrip("\ufffd"))
    found = [text.find(one, max(0, before - len(one) + 1)) for one in stop]
    return min((place for place in found if place >= 0), default=None)
