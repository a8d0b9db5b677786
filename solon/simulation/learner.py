"""The simulated learner: a step takes `learner_s + learner_s_per_token * tokens`."""

from __future__ import annotations

from collections.abc import Callable

from solon.ledger.ledger import Lease
from solon.protocols import PayloadRef
from solon.records import Span, StepReport, Weights
from solon.simulation.draws import GroupLengths
from solon.simulation.lanes import Mortal
from solon.simulation.scenario import Scenario
from solon.simulation.virtual_time import running_loop


def weights_of(version: int) -> Weights:
    """The manifest of a simulated version."""
    return Weights(
        version=version,
        chunks=(),
        fingerprint=f"version {version}",
        canary_token_ids=((1, 2),),
        canary_logprobs=((-1.0,),),
    )


class SimulatedLearner(Mortal):
    """A `LearnerProcess`, and without a guard a `Learner`."""

    def __init__(self, scenario: Scenario, lengths: GroupLengths) -> None:
        loop, failures = running_loop(), scenario.failures
        super().__init__(
            "learner", scenario, loop, mtbf_s=failures.learner_mtbf_s, restart_s=failures.learner_restart_s
        )
        self._scenario = scenario
        self._lengths = lengths
        self._staged = self._version = 0
        self.live()

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        """See `solon.protocols.Learner.step`."""
        self.check()
        start_s = self._loop.time()
        await self.work(self.step_s(lease.ordinals))
        self._version = lease.step + 1
        span = Span(lane="learn", worker=self.name, name="", start_s=start_s, end_s=self._loop.time())
        weights = weights_of(self._version)
        return StepReport(step=lease.step, metrics={}, spans=(span,)), weights, weights

    def step_s(self, ordinals: tuple[int, ...]) -> float:
        """Seconds of a step on these groups."""
        scenario, total = self._scenario, self._lengths.total
        tokens = sum(map(total, ordinals)) + len(ordinals) * scenario.group_size * scenario.prompt_tokens
        return scenario.learner_s + scenario.learner_s_per_token * tokens

    async def raise_kl(self, factor: float) -> float:
        """See `LearnerProcess.raise_kl`: it takes no time."""
        return factor

    async def stage(self, *, copies: bool) -> None:
        """See `LearnerProcess.stage`."""
        self.check()
        self._staged = self._version

    async def write(self, directory: str) -> None:
        """See `LearnerProcess.write`: it takes no time."""
        self.check()

    async def restart_from(self, checkpoint: str, placed: Callable[[], None]) -> tuple[Weights, PayloadRef]:
        """See `LearnerProcess.restart_from`. checkpoint: the number of steps before it; empty: 0."""
        await self.restart(placed)
        self._version = int(checkpoint or 0)
        weights = weights_of(self._version)
        return weights, weights

    @property
    def staged(self) -> int:
        """Steps before the staged state."""
        return self._staged
