"""A question to an engine, one next-token prediction, and its answer, the log-probs of the labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from solon.verdicts import Source, Status


@dataclass(frozen=True, slots=True)
class Question:
    """One next-token question to a judge: token ids for a local engine, a text for an endpoint.

    Question((3, 14, 15), (9, 2)); Question((), (), text="Which is better? Verdict:", labels=("A", "B"))
    """

    prompt_token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    """One token per label, in the order of the log-probs of the answer."""
    text: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Log-probs of the labels with their cost; or a failure, which has no log-probs."""

    logprobs: tuple[float, ...]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens served by the engine's prefix cache."""
    output_tokens: int = 0
    source: Source = "judge"
    failure: Status | None = None
    """Why there is no answer; never a valid status."""
    detail: str = ""
    """Message of the failure, or the critique before the verdict; for people."""
    usd: float = 0.0
    top: str = ""
    """Most likely next word, if the labels got little probability."""

    def __post_init__(self) -> None:
        if self.failure is not None and (self.failure.valid or self.logprobs):
            raise ValueError(f"a failed answer ({self.failure}) carries log-probs {self.logprobs}: it has none")

    @property
    def cache_hit(self) -> bool:
        """Answered without a forward pass."""
        return self.source != "judge"


Ask = Callable[[Sequence[Question]], Awaitable[list[Answer]]]
"""Answers in the order of the questions. A failed question gives a failed answer; an exception means that the judge
itself is lost."""


def question_digest(question: Question) -> str:
    """sha256 of the question without the judge: the same in every run."""
    if question.text:
        return hashlib.sha256(json.dumps([question.text, question.labels]).encode()).hexdigest()
    head = len(question.label_ids).to_bytes(4, "little")
    ids = np.array([*question.label_ids, *question.prompt_token_ids], np.int32)
    return hashlib.sha256(head + ids.tobytes()).hexdigest()
