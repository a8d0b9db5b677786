"""The lanes of the loop, put together: the one place that a run, a test and a benchmark share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from actors.calls import is_there
from solon.clock import Clock
from solon.files.prompts import PromptSource
from solon.loop import Lanes
from solon.pipeline.pool import Pool
from solon.pipeline.publication import Publication, PublishConfig
from solon.protocols import LedgerPort, Observer
from solon.records import Weights
from solon.recovery.guard import RecoveryConfig
from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedLearner, SupervisedRollout


def publication_for(
    rollout: Pool[SupervisedRollout],
    learner: SupervisedLearner,
    *,
    settings: PublishConfig,
    initial: Weights,
    recovery: RecoveryConfig,
    attested: int = 0,
    clock: Clock | None = None,
) -> Publication:
    """The way of weights from the learner to the engines of this pool: one that is lost leaves it, and its replacement,
    or an engine that is added, joins when it holds the current weights.

    attested: the version that the engines have shown to hold before.
    """
    publication = Publication(
        rollout,
        settings=settings,
        initial=initial,
        attested=attested,
        renewal_s=recovery.node_timeout_s + recovery.restart_timeout_s,
        clock=clock,
    )
    learner.on_weights = publication.renew
    rollout.entry = publication
    return publication


def assemble_lanes(
    *,
    rollout: Pool[SupervisedRollout],
    judges: Pool[SupervisedJudge],
    learner: Any,
    ledger: LedgerPort,
    prompts: PromptSource,
    publication: Publication,
    observer: Observer,
    recovery: RecoveryConfig,
    checkpoint: Callable[[int], Awaitable[None]] | None = None,
    clock: Clock | None = None,
) -> Lanes:
    """What `solon.loop.run_loop` is given. learner: with a guard, or a process that no one replaces."""
    return Lanes(
        rollout=rollout,
        judges=judges,
        learner=learner,
        ledger=ledger,
        prompts=prompts,
        publication=publication,
        observer=observer,
        checkpoint=checkpoint,
        is_there=is_there,
        grace_s=recovery.grace_s,
        clock=clock or Clock(),
    )
