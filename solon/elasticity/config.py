"""The settings under `elasticity`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ElasticityConfig(BaseModel):
    """When pools change size during training. The bounds are `num_actors` and `max_actors` of each pool's section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every_s: float = Field(15, gt=0)
    """Seconds between two decisions."""
    cooldown_s: float = Field(60, ge=0)
    """Seconds for which a pool keeps its size after a change."""
    max_step: int = Field(2, ge=1)
    """Most workers that are added to a pool at once. They are removed one at a time."""
    agreeing: int = Field(2, ge=1)
    """Decisions in a row that must want a change in the same direction."""
    spare_share: float = Field(0.1, ge=0, le=1)
    """Capacity that a pool should have beyond the need. It grows when it has less."""
    shrink_share: float = Field(0.4, gt=0, le=10)
    """A pool shrinks when one worker fewer would still have this much capacity beyond the need; above `spare_share`."""
    place_timeout_s: float = Field(600, gt=0)
    """Time in which an added worker must get a place on a node. After it the request is withdrawn."""
    retry_after_s: float = Field(600, ge=0)
    """Seconds for which a pool does not grow after a worker could not be added."""
    leave_within_s: float = Field(60, ge=0)
    """Time that a leaving worker has to finish its groups; what is left is handed back."""
    drain_margin_s: float = Field(5, ge=0)
    """A worker has left a machine that is drained this long before the machine goes."""

    def model_post_init(self, _: object) -> None:
        if self.shrink_share <= self.spare_share:
            raise ValueError(
                f"shrink_share = {self.shrink_share:g}, expected more than spare_share = {self.spare_share:g}: a pool "
                "would grow and shrink in turn; raise shrink_share"
            )
