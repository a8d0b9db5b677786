"""What is asked of an engine: one next-token question, and the log-probs of its labels that come back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from solon.verdicts import Source, Status


@dataclass(frozen=True, slots=True)
class Question:
    """One next-token question to a judge: token ids for an engine that runs here, a text for an endpoint.

    Question((3, 14, 15), (9, 2)); Question((), (), text="Which is better? Verdict:", labels=("A", "B"))
    """

    prompt_token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    """One token per label, in the order of the log-probs of the answer."""
    text: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Log-probs of the labels, and what it cost; or a failure, which has no log-probs at all."""

    logprobs: tuple[float, ...]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine's prefix cache served."""
    output_tokens: int = 0
    source: Source = "judge"
    failure: Status | None = None
    """Why there is no answer; never a valid status."""
    detail: str = ""
    """What the failure said, or the critique that came before the verdict; for people."""
    usd: float = 0.0
    top: str = ""
    """Likeliest next word, where the labels got little probability."""

    def __post_init__(self) -> None:
        if self.failure is not None and (self.failure.valid or self.logprobs):
            raise ValueError(f"a failed answer ({self.failure}) carries log-probs {self.logprobs}: it has none")

    @property
    def cache_hit(self) -> bool:
        """Answered without a forward pass."""
        return self.source != "judge"


Ask = Callable[[Sequence[Question]], Awaitable[list[Answer]]]
"""Answers in the order of the questions. A question that failed comes back as a failed answer; an exception
means that the judge itself is gone."""


def question_digest(question: Question) -> str:
    """sha256 of what is asked, without the judge: the same in every run."""
    if question.text:
        return hashlib.sha256(json.dumps([question.text, question.labels]).encode()).hexdigest()
    head = len(question.label_ids).to_bytes(4, "little")
    ids = np.array([*question.label_ids, *question.prompt_token_ids], np.int32)
    return hashlib.sha256(head + ids.tobytes()).hexdigest()
