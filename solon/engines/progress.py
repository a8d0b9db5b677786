"""The output of a request so far, token by token, each with its log-prob and its policy version."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from solon.engines.base import Completion, Request
from solon.records import FinishReason

NOTHING: Mapping[str, int] = {}
"""The caller knows no tokens of any request yet."""


@dataclass(slots=True, eq=False)
class Progress:
    """A request that an engine is processing."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    label_logprobs: tuple[float, ...] = ()
    cached_tokens: int = 0

    def completion(self, reason: FinishReason, *, after: int = 0) -> Completion:
        """The whole output, or the tokens from `after` on."""
        return Completion(
            request_id=self.request.request_id,
            token_ids=np.array(self.tokens[after:], np.int32),
            logprobs=np.array(self.logprobs[after:], np.float32),
            segments=run_length(self.versions[after:]),
            finish_reason=reason,
            label_logprobs=self.label_logprobs,
            cached_tokens=self.cached_tokens,
        )


def news(running: Iterable[Progress], after: Mapping[str, int]) -> list[Completion]:
    """The output of these requests beyond their first `after[request_id]` tokens; requests without any are omitted."""
    found = []
    for progress in running:
        known = after.get(progress.request.request_id, 0)
        if len(progress.tokens) > known:
            found.append(progress.completion("abort", after=known))
    return found


def continued(request: Request, tokens: Sequence[int]) -> Request:
    """What is left of a request that has these tokens. Its seed is another one: with the same, the random numbers of
    the tokens that it has would come again."""
    digest = hashlib.sha256(f"{request.seed}:after:{request.written + len(tokens)}".encode()).digest()
    return replace(
        request,
        prompt_token_ids=(*request.prompt_token_ids, *tokens),
        max_tokens=request.max_tokens - len(tokens),
        written=request.written + len(tokens),
        seed=int.from_bytes(digest[:4], "big") >> 1,
    )


def run_length(versions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Policy versions of successive tokens as segments.

    >>> run_length([3, 3, 4])
    ((3, 2), (4, 1))
    """
    return tuple((version, len(list(tokens))) for version, tokens in itertools.groupby(versions))
