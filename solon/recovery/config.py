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
    """Replacements of one worker within `window_s`, or in a row without an answer in between. One more ends the run
    with the cause."""
    window_s: float = Field(600, gt=0)
    backoff_s: float = Field(1, ge=0)
    """Pause before the second replacement within the window; doubles with each further one."""
    restart_timeout_s: float = Field(600, gt=0)
    """Time in which a worker that has been placed on a node must load its model."""
    node_timeout_s: float = Field(900, gt=0)
    """Time in which a worker must be placed on a node; on a growing cluster this includes booting one and pulling the
    image."""
    beat_every_s: float = Field(5, gt=0)
    """Seconds between two heartbeats."""
    beat_timeout_s: float = Field(30, gt=0)
    """A worker that does not answer a heartbeat in this time is killed and replaced."""
    stall_s: float = Field(600, gt=0, le=10**6)
    """An engine that makes no progress on its work in this time is replaced. A run without progress in this time
    reports which stage waits for which."""
    salvage_every_s: float = Field(2, ge=0)
    """Seconds between two reports of the tokens of unfinished answers. When the engine is lost or leaves, another
    engine continues from the last report. 0: no reports."""
    step_timeout_s: float = Field(7200, gt=0)
    """A learner that takes longer for one step is replaced."""
    grace_s: float = Field(20, ge=0)
    """Seconds that unfinished groups have to finish when a run is stopped. The others are generated again when the run
    is resumed."""
    damaged_records: Literal["continue", "refuse"] = "continue"
    """How `--resume` treats append-only files (metrics, events, rollouts, labels) that were cut or edited since the
    checkpoint: report it and continue, since they are not used for training, or refuse."""


def start_limit(config: RecoveryConfig, clock: Clock) -> StartLimit:
    """How long one process may take to start."""
    return StartLimit(node_timeout_s=config.node_timeout_s, restart_timeout_s=config.restart_timeout_s, clock=clock)
