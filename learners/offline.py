"""Trains a policy on a preference data set or on rated answers, and saves it as a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from learners.core.config import NetworkConfig
from learners.core.course import CourseReport, run_course
from learners.core.policy import Policy
from learners.core.processes import device_of_ranks, run_on_ranks
from learners.core.publish import Publisher
from learners.core.ranks import ALONE, Ranks
from learners.direct.config import DirectConfig, RatingConfig
from learners.direct.pairs import AnswerPair, RatedAnswer
from learners.objectives.dpo import DPOObjective, with_reference
from learners.objectives.kto import KTOObjective
from solon.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of a training on a fixed data set."""

    report: CourseReport
    examples: int
    """Pairs or answers with a weight above 0."""


def train_on_pairs(
    model: str,
    pairs: Sequence[AnswerPair],
    config: DirectConfig,
    *,
    save_to: Path,
    tick: Callable[[float], None] = lambda _: None,
) -> Trained:
    """DPO from a model directory to another. tick: called by one process, not by several ranks.

    Raises InputError when no pair counts, RunFailedError when the loss is not finite.
    """
    used = [pair for pair in pairs if pair.weight > 0]
    if not used:
        raise InputError(f"got {len(pairs)} preference pairs, none with a weight above 0, expected some; label more")
    return _on_ranks(_train_pairs, model, used, config, save_to, tick)


def _train_pairs(
    ranks: Ranks,
    model: str,
    used: Sequence[AnswerPair],
    config: DirectConfig,
    save_to: Path,
    tick: Callable[[float], None] = lambda _: None,
) -> Trained:
    policy = _policy(model, config, ranks, reference=False)
    if any(pair.reference is None for pair in used):
        with policy.grid.off() if policy.grid is not None else nullcontext():
            used = with_reference(policy, used)
    report = run_course(DPOObjective(policy, config), used, config, tick=tick)
    return _saved(policy, model, config, save_to, report, len(used))


def train_on_ratings(
    model: str,
    answers: Sequence[RatedAnswer],
    config: RatingConfig,
    *,
    save_to: Path,
    tick: Callable[[float], None] = lambda _: None,
) -> Trained:
    """KTO from a model directory to another. tick: called by one process, not by several ranks.

    Raises InputError when no answer counts, RunFailedError when the loss is not finite.
    """
    used = [one for one in answers if one.weight > 0]
    if len({one.prompt for one in used}) < 2:
        raise InputError(
            f"got {len(used)} rated answers with a weight above 0 to {len({one.prompt for one in used})} prompts, "
            "expected at least two prompts; rate more"
        )
    return _on_ranks(_train_ratings, model, used, config, save_to, tick)


def _train_ratings(
    ranks: Ranks,
    model: str,
    used: Sequence[RatedAnswer],
    config: RatingConfig,
    save_to: Path,
    tick: Callable[[float], None] = lambda _: None,
) -> Trained:
    policy = _policy(model, config, ranks, reference=True)
    report = run_course(KTOObjective(policy, config), used, config, tick=tick)
    return _saved(policy, model, config, save_to, report, len(used))


def _on_ranks(
    train: Callable[..., Trained],
    model: str,
    used: Sequence[object],
    config: DirectConfig | RatingConfig,
    out: Path,
    tick: Callable[[float], None],
) -> Trained:
    """The result of this process, or of the first of several ranks, which saves the policy."""
    if config.num_ranks == 1:
        return train(ALONE, model, used, config, out, tick)
    device = device_of_ranks(config.num_ranks, config.device, model)
    alike = config.model_copy(update={"device": device})
    found: Trained = run_on_ranks(
        config.num_ranks, train, model, used, alike, out, device=device, threads=config.threads
    )[0]
    return found


def _policy(model: str, config: NetworkConfig, ranks: Ranks, *, reference: bool) -> Policy:
    torch.set_num_threads(config.threads)
    with torch.random.fork_rng(devices=[]):  # adapters are initialised at random
        torch.manual_seed(getattr(config, "seed", 0))
        policy = Policy(config, model=model, temperature=1.0, reference=reference, ranks=ranks)
    policy.divide()
    return policy


def _saved(
    policy: Policy, model: str, config: NetworkConfig, save_to: Path, report: CourseReport, examples: int
) -> Trained:
    Publisher(policy, model=model, dtype=config.serving_dtype).save(save_to)
    return Trained(report=report, examples=examples)
