"""What is simulated: the machines, the settings of the loop, how long everything takes, and what fails.

    Scenario(
        engines=8, slots=32, rollout_rate=((1, 90), (256, 12_000)),
        judges=2, judge_slots=16, judge_rate=((1, 4), (16, 40)),
        learner_s=2.0, learner_s_per_token=4e-6, batch_groups=128, steps=50,
    )

A *rate table* is a sequence of (concurrency, work per second of the whole worker), concurrency ascending. Between two
entries the rate is interpolated; below the first one it is proportional to the concurrency; above the last one it is
that of the last one.
"""

from __future__ import annotations

import itertools
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from solon.ledger.config import LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.recovery.config import RecoveryConfig

RateTable = tuple[tuple[float, float], ...]


class Lengths(BaseModel):
    """Tokens of an answer: log-normal, or drawn from `observed` when that is given.

    `Lengths(mean=800, sigma=0.9, max_tokens=4096)`
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float = Field(512, ge=1)
    """Mean of the log-normal distribution before it is cut at `max_tokens`."""
    sigma: float = Field(0.6, ge=0, le=4)
    """Standard deviation of the logarithm; 0: every answer has `mean` tokens."""
    max_tokens: int = Field(4096, ge=1)
    """Longer answers are cut."""
    observed: tuple[int, ...] = ()
    """Lengths of real answers: each answer takes one of them at random."""

    @field_validator("observed")
    @classmethod
    def _are_lengths(cls, observed: tuple[int, ...]) -> tuple[int, ...]:
        if observed and min(observed) < 1:
            raise ValueError(f"holds a length of {min(observed)} tokens, expected at least 1; remove empty answers")
        return observed


class Failures(BaseModel):
    """Mean seconds between two deaths of one worker (exponential; 0: it never dies), and how long a new one takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout_mtbf_s: float = Field(0, ge=0)
    judge_mtbf_s: float = Field(0, ge=0)
    learner_mtbf_s: float = Field(0, ge=0)
    rollout_restart_s: float = Field(60, ge=0)
    judge_restart_s: float = Field(60, ge=0)
    learner_restart_s: float = Field(120, ge=0)
    """A new learner then trains the steps since the last checkpoint again."""
    spot_mtbf_s: float = Field(0, ge=0)
    """Mean seconds until the node of an engine is taken away."""
    spot_return_s: float = Field(300, ge=0)
    """Until another node takes its place; then the engine restarts."""

    @property
    def any_of_lanes(self) -> bool:
        """Whether an engine or a judge can be lost."""
        return bool(self.rollout_mtbf_s or self.judge_mtbf_s or self.spot_mtbf_s)

    @property
    def any(self) -> bool:
        """Whether any worker can be lost."""
        return self.any_of_lanes or bool(self.learner_mtbf_s)


class Prices(BaseModel):
    """US dollars per accelerator hour, by pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout: float = Field(0, ge=0)
    judge: float = Field(0, ge=0)
    learner: float = Field(0, ge=0)


class Scenario(BaseModel):
    """One simulated run. The same scenario gives the same run, event for event."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # -- machines
    engines: int = Field(1, ge=1, le=100_000)
    slots: int = Field(16, ge=1)
    """Groups that an engine holds at once."""
    accelerators_per_engine: int = Field(1, ge=1)
    judges: int = Field(1, ge=1, le=100_000)
    judge_slots: int = Field(16, ge=1)
    """Groups that a judge holds at once."""
    accelerators_per_judge: int = Field(1, ge=1)
    learner_ranks: int = Field(1, ge=1)
    """Accelerators of the learner; `learner_s` and `learner_s_per_token` are those of all of them together."""

    # -- the run
    steps: int = Field(20, ge=1)
    batch_groups: int = Field(16, ge=1)
    group_size: int = Field(8, ge=1)
    """Answers of a group."""
    target_staleness: int = Field(1, ge=0, le=64)
    max_staleness: int = Field(4, ge=0, le=256)
    lockstep: bool = False
    """With target_staleness = 0: synchronous training, one stage after the other."""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between two checkpoints."""
    seed: int = Field(0, ge=0)

    # -- lengths and times
    lengths: Lengths = Lengths()
    prompt_tokens: int = Field(256, ge=1)
    rollout_rate: RateTable = ((1.0, 50.0), (256.0, 5000.0))
    """Tokens per second of one engine, by the number of answers that it decodes at once."""
    prefill_tokens_per_s: float = Field(0, ge=0)
    """Prompt tokens per second of one engine; the answers of a group share the prompt. 0: takes no time."""
    judge_rate: RateTable = ((1.0, 2.0), (16.0, 20.0))
    """Groups per second of one judge, by the number of groups that it holds."""
    learner_s: float = Field(1.0, ge=0)
    """Seconds of a step, whatever the batch."""
    learner_s_per_token: float = Field(0.0, ge=0)
    """Seconds of a step per token of its batch: of every answer, and of the prompt once per answer."""
    publish_s: float = Field(1.0, ge=0)
    """Seconds in which one engine takes and proves a policy version; the versions are in a shared store."""
    publish_pause_s: float = Field(0.1, ge=0)
    """Of these, the last ones, in which it generates nothing."""
    publish_at_once: int = Field(1, ge=1)
    """Engines that take a version at the same time (`publish.engines_at_once`)."""
    bytes_per_token: float = Field(8.0, ge=0)
    """Of an answer, in the object store."""
    max_held_mib: float = Field(4096, gt=0)
    """`ledger.max_held_mib`."""
    lease_s: float = Field(600, gt=0)
    """`ledger.lease_s`."""

    # -- failures and prices
    failures: Failures = Failures()
    recovery: RecoveryConfig = RecoveryConfig()
    prices: Prices = Prices()

    @field_validator("rollout_rate", "judge_rate")
    @classmethod
    def _is_a_table(cls, table: RateTable) -> RateTable:
        if not table:
            raise ValueError("is empty, expected at least one (concurrency, rate); measure one point")
        if any(concurrency <= 0 or rate <= 0 for concurrency, rate in table):
            raise ValueError(f"got {list(table)}, expected positive numbers")
        if any(after[0] <= before[0] for before, after in itertools.pairwise(table)):
            raise ValueError(f"got concurrencies {[c for c, _ in table]}, expected ascending ones; sort the table")
        return table

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        self.staleness_config()
        if self.publish_pause_s > self.publish_s:
            raise ValueError(
                f"publish_pause_s = {self.publish_pause_s:g} exceeds publish_s = {self.publish_s:g}, expected at most "
                "that: the pause is a part of it"
            )
        if self.lockstep and self.target_staleness:
            raise ValueError(
                f"lockstep with target_staleness = {self.target_staleness}, expected 0: synchronous training does not "
                "run ahead"
            )
        return self

    @property
    def total_groups(self) -> int:
        """Groups to train."""
        return self.steps * self.batch_groups

    @property
    def accelerators(self) -> int:
        """Of all pools."""
        pools = self.engines * self.accelerators_per_engine + self.judges * self.accelerators_per_judge
        return pools + self.learner_ranks

    def ledger_config(self) -> LedgerConfig:
        """Settings of the ledger."""
        return LedgerConfig(
            batch_groups=self.batch_groups,
            lockstep=self.lockstep,
            max_held_mib=self.max_held_mib,
            lease_s=self.lease_s,
        )

    def staleness_config(self) -> StalenessConfig:
        """The two knobs. Raises ValueError when they contradict each other."""
        return StalenessConfig(target_staleness=self.target_staleness, max_staleness=self.max_staleness)
