"""The `[ledger]` section of a run file."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from solon.files.marks import MayChange


class LedgerConfig(BaseModel):
    """Bounds of the ledger. `LedgerConfig(batch_groups=16)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_groups: int = Field(16, ge=1)
    """Groups in a batch: one optimiser step."""
    max_held_mib: Annotated[float, MayChange()] = Field(4096, gt=0)
    """Payload that may wait in the object store, including what is still to be written to disk; admission stops above
    it. The groups of one batch are always admitted, however large they are."""
    max_attempts: Annotated[int, MayChange()] = Field(3, ge=1)
    """Attempts at a group before it is dropped."""
    max_losses: Annotated[int, MayChange()] = Field(10, ge=1)
    """Workers that may die on one group before it is dropped: a prompt that kills engines must not kill them all."""
    lease_s: Annotated[float, MayChange()] = Field(600, gt=0)
    """A group that an engine or judge holds longer is assigned to another; late results are refused."""
    lockstep: bool = False
    """Label only when the whole batch is generated: together with target_staleness = 0, synchronous training."""
    max_dropped_share: Annotated[float, MayChange()] = Field(0.05, ge=0, le=1)
    """The run fails when more than this share of at least 40 finished groups was dropped, during the run and at its
    end. With fewer groups that is a warning in the summary."""
