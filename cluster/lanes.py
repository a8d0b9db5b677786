"""Assembles the lanes of the loop: shared by runs, tests and benchmarks."""

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
    emit: Callable[..., None] = lambda name, **fields: None,
) -> Publication:
    """Publishes weights from the learner to the engines of this pool. A lost engine leaves the pool; its replacement,
    or an added engine, joins once it holds the current weights.

    attested: the version that the engines have already proven to hold. emit: gets an event for an
    engine that proves nothing.
    """
    publication = Publication(
        rollout,
        settings=settings,
        initial=initial,
        attested=attested,
        renewal_s=recovery.node_timeout_s + recovery.restart_timeout_s,
        clock=clock,
        emit=emit,
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
    """The arguments of `solon.loop.run_loop`. learner: with a guard, or a process that is never replaced."""
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
