"""How far a policy has moved from others, measured on its own answers.

    KL(policy, anchor) = E over answers of the policy of log policy(answer) - log anchor(answer)

The estimate is unbiased for answers that are sampled at temperature 1 without filters, in nats for a whole answer.

A anchors, R answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.core.config import NetworkConfig
from learners.core.policy import Policy
from learners.direct.pairs import Tokens, batch_of
from learners.direct.rows import answer_logprobs
from solon.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """From one anchor."""

    nats: float
    """For a whole answer."""
    standard_error: float
    """Over prompts."""
    nats_per_token: float


def drift(
    policy: str, anchors: Mapping[str, str], answers: Sequence[tuple[Tokens, Tokens]], config: NetworkConfig
) -> dict[str, Drift]:
    """By anchor. answers: prompts and the policy's answers to them, ends included.

    One model is in memory at a time. Raises InputError when a model cannot be loaded or there is no answer.
    """
    if not answers:
        raise InputError("got no answers to measure drift on, expected some; give more prompts")
    batch = batch_of([(prompt, (answer,)) for prompt, answer in answers])

    def logprobs_R(model: str) -> NDArray[np.float64]:
        loaded = Policy(config, model=model, temperature=1.0, reference=False)
        return answer_logprobs(loaded, loaded.layout, batch, range(batch.num_rollouts))

    ours_R, tokens = logprobs_R(policy), sum(len(answer) for _, answer in answers)
    found = {}
    for name, model in anchors.items():
        apart_R = ours_R - logprobs_R(model)
        found[name] = Drift(
            nats=float(apart_R.mean()),
            standard_error=_standard_error(apart_R, [prompt for prompt, _ in answers]),
            nats_per_token=float(apart_R.sum() / tokens),
        )
    return found


def _standard_error(values_R: NDArray[np.float64], prompts: Sequence[Tokens]) -> float:
    """Of the mean; answers to one prompt are averaged first."""
    by_prompt: dict[Tokens, list[float]] = {}
    for prompt, value in zip(prompts, values_R, strict=True):
        by_prompt.setdefault(prompt, []).append(float(value))
    means = np.array([np.mean(some) for some in by_prompt.values()])
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")
