"""Runs a scenario: the loop of a real run with simulated lanes.

    outcome = simulate(Scenario(engines=4, judges=1, steps=100))

The loop, the ledger with its admission and staleness, the pools, the publication with its attestation and, where
workers die, the guards are those of a real run. Only time is simulated, and the processes that take it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from solon.clock import Clock
from solon.files.prompts import PromptSource
from solon.ledger.async_ledger import AsyncLedger
from solon.loop import Lanes, run_loop
from solon.pipeline.pool import Pool
from solon.pipeline.publication import Publication, PublishConfig
from solon.records import Message, Prompt
from solon.recovery.guard import Guard
from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedLearner, SupervisedRollout
from solon.simulation.draws import GroupLengths
from solon.simulation.lanes import SimulatedEngine, SimulatedJudge
from solon.simulation.learner import SimulatedLearner, weights_of
from solon.simulation.observer import Account
from solon.simulation.outcome import Outcome
from solon.simulation.scenario import Scenario
from solon.simulation.stations import Rate
from solon.simulation.virtual_time import run_virtual, running_loop


def simulate(scenario: Scenario) -> Outcome:
    """The outcome of a simulated run. Raises RunFailedError where a real run would fail, with its message: a worker
    that dies too often, too many dropped groups."""
    begin_s = time.process_time()

    async def main(clock: Clock) -> tuple[_Simulation, dict[str, int]]:
        simulation = _Simulation(scenario, clock)
        await run_loop(simulation.lanes, steps=scenario.steps, min_valid=1, stop=asyncio.Event())
        return simulation, await simulation.ledger.counts()

    with _rare_collections():
        (simulation, counts), wall_s, _ = run_virtual(main)
    return simulation.outcome(counts, wall_s=wall_s, compute_s=time.process_time() - begin_s)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Python looks for unreachable cycles less often: with its defaults that takes a tenth of a simulation."""
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@dataclass(slots=True)
class _Most:
    """The largest holdings seen after a step."""

    held: int = 0
    nbytes: int = 0


class _Simulation:
    """The parts of one simulated run."""

    def __init__(self, scenario: Scenario, clock: Clock) -> None:
        self.scenario = scenario
        self._clock = clock
        self._most = _Most()
        self._lengths = GroupLengths(scenario)
        self.account = Account(running_loop())
        self.ledger = AsyncLedger(
            scenario.ledger_config(), scenario.staleness_config(), total_groups=scenario.total_groups, clock=clock
        )
        self.ledger.listen(self.account.event)
        self._rollout_rate, self._judge_rate = Rate(scenario.rollout_rate), Rate(scenario.judge_rate)
        rollout: Pool[Any] = Pool([self._engine(number) for number in range(scenario.engines)])
        judges: Pool[Any] = Pool([self._judge(number) for number in range(scenario.judges)])
        publication = Publication(
            rollout,
            settings=PublishConfig(timeout_s=scenario.publish_s + 300, engines_at_once=scenario.publish_at_once),
            initial=weights_of(0),
            renewal_s=scenario.recovery.node_timeout_s + scenario.recovery.restart_timeout_s,
            clock=clock,
        )
        rollout.entry = publication
        self._process = SimulatedLearner(scenario, self._lengths)
        self._learner = self._supervised_learner(publication) if scenario.failures.learner_mtbf_s else None
        message = Message(role="user", content="?")
        prompts = [Prompt(prompt_id=str(number), messages=(message,)) for number in range(1024)]
        self.lanes = Lanes(
            rollout=rollout,
            judges=judges,
            learner=self._learner or self._process,
            ledger=self.ledger,
            prompts=PromptSource(prompts, seed=scenario.seed),
            publication=publication,
            observer=self.account,
            checkpoint=self._after_step,
            clock=clock,
        )

    def _engine(self, number: int) -> SimulatedEngine | SupervisedRollout:
        engine = SimulatedEngine(f"rollout-{number}", self.scenario, self._lengths, self._rollout_rate)
        if not self.scenario.failures.any_of_lanes:
            return engine
        return SupervisedRollout(engine, self._guard(engine))

    def _judge(self, number: int) -> SimulatedJudge | SupervisedJudge:
        judge = SimulatedJudge(f"judge-{number}", self.scenario, self._judge_rate)
        return SupervisedJudge(judge, self._guard(judge)) if self.scenario.failures.any_of_lanes else judge

    def _guard(self, process: SimulatedEngine | SimulatedJudge) -> Guard:
        return Guard(process, self.scenario.recovery, emit=self.account.event, clock=self._clock)

    def _supervised_learner(self, publication: Publication) -> SupervisedLearner:
        learner = SupervisedLearner(
            self._process, self.scenario.recovery, checkpoint="", emit=self.account.event, clock=self._clock
        )
        learner.on_weights = publication.renew
        return learner

    async def _after_step(self, steps: int) -> None:
        counts = await self.ledger.counts()
        self._most.held = max(self._most.held, counts["held"])
        self._most.nbytes = max(self._most.nbytes, counts["held_bytes"])
        if self._learner is not None and steps % self.scenario.checkpoint_every == 0:
            await self._learner.stage(copies=False)
            self._learner.saved(str(self._process.staged))

    def outcome(self, counts: dict[str, int], *, wall_s: float, compute_s: float) -> Outcome:
        """wall_s: simulated. compute_s: real."""
        scenario, account = self.scenario, self.account
        overlap = account.busy.overlap(wall_s=wall_s)
        ended = account.ended
        trained, twice = counts["committed"], sum(times > 1 for times in ended)
        lost = counts["admitted"] - sum(map(bool, ended)) - counts["held"]
        most_tokens = scenario.engines * self._rollout_rate.peak * wall_s
        most_groups = scenario.judges * self._judge_rate.peak * wall_s
        again = account.faults["group_lost"] + account.faults["judge_lost"]
        return Outcome(
            wall_s=wall_s,
            steps=account.steps,
            groups=trained,
            rollouts=trained * scenario.group_size,
            tokens=account.tokens,
            busy=dict(overlap.busy),
            utilisation={
                "generate": account.tokens / most_tokens,
                "label": account.num_labelled / most_groups,
                "learn": overlap.busy["learn"],
            },
            efficiency=overlap.efficiency,
            binding_stage=overlap.binding_stage,
            publish_s=sum(account.publications_s) / max(1, len(account.publications_s)),
            staleness=dict(sorted(account.staleness.items())),
            violations=sum(n for steps, n in account.staleness.items() if steps > scenario.max_staleness),
            lost=lost,
            twice=twice,
            dropped=counts["dropped"],
            faults=dict(account.faults),
            accelerators=scenario.accelerators,
            cost_usd=self._usd_per_hour() * wall_s / 3600,
            # Admitted and generated, taken and labelled, leased and committed; what was lost is granted again.
            transitions=2 * (account.num_generated + account.num_labelled + trained) + again + account.steps,
            most_held=self._most.held,
            most_held_bytes=self._most.nbytes,
            events=account.events,
            digest=account.digest(),
            compute_s=compute_s,
        )

    def _usd_per_hour(self) -> float:
        scenario, prices = self.scenario, self.scenario.prices
        return (
            scenario.engines * scenario.accelerators_per_engine * prices.rollout
            + scenario.judges * scenario.accelerators_per_judge * prices.judge
            + scenario.learner_ranks * prices.learner
        )
