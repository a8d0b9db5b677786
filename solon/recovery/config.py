"""The settings under `recovery`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from solon.clock import Clock
from solon.recovery.start_limit import StartLimit


class RecoveryConfig(BaseModel):
    """When a worker counts as lost, and how often it is replaced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_restarts: int = Field(5, ge=0)
    """Replacements of one worker within `window_s`, or in a row without a single answer in between; one more ends the
    run with the cause."""
    window_s: float = Field(600, gt=0)
    backoff_s: float = Field(1, ge=0)
    """Pause before the second replacement within the window; it doubles with each further one."""
    restart_timeout_s: float = Field(600, gt=0)
    """A worker that has a place on a node must have its model loaded by then."""
    node_timeout_s: float = Field(900, gt=0)
    """A worker must have a place on a node by then: on a cluster that grows, a node is started and pulls its image."""
    beat_every_s: float = Field(5, gt=0)
    """Seconds between two heartbeats."""
    beat_timeout_s: float = Field(30, gt=0)
    """A worker that does not answer by then is killed and replaced."""
    stall_s: float = Field(600, gt=0)
    """An engine that makes no progress on its work for so long is replaced; a run without progress for so long reports
    which stage waits for which."""
    salvage_every_s: float = Field(2, ge=0)
    """Seconds between two reports of the tokens of unfinished answers: when the engine is lost, or leaves, another one
    continues from the last report. 0: never."""
    step_timeout_s: float = Field(7200, gt=0)
    """A learner that needs longer for one step is replaced."""
    grace_s: float = Field(20, ge=0)
    """Seconds that unfinished groups may take to end when a run is stopped; the others are generated again when the run
    is resumed."""
    damaged_records: Literal["continue", "refuse"] = "continue"
    """What `--resume` does when files that a run only adds to (metrics, events, rollouts, labels) were cut or edited
    since the checkpoint: it says so and continues, for nothing is trained from them, or it refuses."""


def start_limit(config: RecoveryConfig, clock: Clock) -> StartLimit:
    """How long one process may take to start."""
    return StartLimit(node_timeout_s=config.node_timeout_s, restart_timeout_s=config.restart_timeout_s, clock=clock)
