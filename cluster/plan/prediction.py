"""What a run of a split will do: throughput, busy lanes, staleness, cost.

Where every worker has a device of its own, `solon.simulation` runs the loop of a real run under a virtual clock. Where
lanes share cores or a device, `cluster.plan.shared` does, since there they slow each other.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from cluster.config.run_file import RunFile
from cluster.plan.rates import Rates
from cluster.plan.shared import LANES, Machine, SharedRun, Work
from cluster.plan.splits import Split
from solon.recovery.config import RecoveryConfig
from solon.simulation.run import simulate
from solon.simulation.scenario import Lengths, Prices, Scenario

STEPS = 24
"""Simulated, unless the run has fewer. Filling the pipeline counts, as it does in a run."""
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ADMISSION = "admission"
SATURATED = 0.85
"""Busy share from which a lane limits a run."""
USED = 0.5
"""Utilisation from which it does: below, more work at once would cost it little."""
PAUSE_SHARE = 0.5
"""Of the time in which an engine takes a version, in which it generates nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Of one split."""

    split: Split
    groups_per_s: float
    tokens_per_s: float
    step_s: float
    busy: dict[str, float]
    """Share of the time in which a worker of the lane works, mean of its workers."""
    utilisation: dict[str, float]
    """Work of the lane as a share of what its workers do with all their places taken: an engine that decodes one answer
    is busy, and hardly used."""
    efficiency: float
    binding: str
    publish_s: float
    """Until a version is live on every engine."""
    staleness_mean: float
    staleness_p50: int
    staleness_max: int
    devices: int
    usd_per_1000_groups: float

    @property
    def binds(self) -> str:
        """The lane that limits the run, or `admission` where none does: batch and staleness admit too little work."""
        if self.split.on_cpu or self.split.sharing or self.binding not in self.utilisation:
            return self.binding
        is_full = self.busy[self.binding] >= SATURATED and self.utilisation[self.binding] >= USED
        return self.binding if is_full else ADMISSION

    def as_json(self) -> dict[str, Any]:
        """Rounded."""
        found = asdict(self) | {"binds": self.binds}
        for key in ("busy", "utilisation"):
            found[key] = {lane: round(share, 4) for lane, share in found[key].items()}
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


def predict(run: RunFile, rates: Rates, split: Split, *, usd_per_hour: float, steps: int = 0) -> Prediction:
    """usd_per_hour: of one device, or of the machine where all lanes share its cores. steps: of the simulated run; 0: a
    number that shows the steady state."""
    count = steps or min(run.steps, STEPS)
    shared = split.on_cpu or bool(split.sharing)
    outcome = _shared(run, rates, split, count) if shared else _apart(run, rates, split, count)
    rate = float(outcome["groups_per_s"])
    devices = max(1, split.devices)
    return Prediction(
        split=split,
        step_s=run.ledger.batch_groups / rate,
        devices=split.devices,
        usd_per_1000_groups=devices * usd_per_hour / 3600 * 1000 / rate,
        **outcome,
    )


def _shared(run: RunFile, rates: Rates, split: Split, steps: int) -> dict[str, Any]:
    lanes = {"generate", "label", "learn", "load", "driver"}
    if not split.on_cpu:
        lanes = {*split.sharing, *(["load"] if "generate" in split.sharing else [])}
    cores = rates.cores if split.on_cpu else 1.0
    machine = Machine(cores=cores, crowding=rates.crowding if split.on_cpu else 1.0, lanes=frozenset(lanes))
    asked = {"generate": rates.rollout.cores, "label": rates.judging.cores, "learn": rates.learn.cores}
    asked["load"] = rates.publish.cores
    work = Work(
        engines=split.engines,
        judges=split.judges,
        slots=run.rollout.max_running,
        held=max(2, 2 * run.judging.max_running // run.rollout.group_size),
        group_size=run.rollout.group_size,
        batch_groups=run.ledger.batch_groups,
        staleness=run.staleness.model_copy(update={"target_staleness": split.staleness}),
        lockstep=run.ledger.lockstep and not split.staleness,
        steps=steps,
        lengths=rates.answer_tokens,
        decode=(rates.rollout.step_s, rates.rollout.token_s),
        label=(rates.judging.call_s, rates.judging.group_s),
        learn=rates.learn.with_ranks(split.ranks, _trained(run, rates)),
        load_s=rates.publish.load_s,
        first_s=rates.learn.first_s if steps == run.steps else 0.0,
        driver_s=rates.driver_s,
        cores=asked if split.on_cpu else dict.fromkeys(asked, 1.0),
        gives_way=frozenset(
            lane for lane, section in (("generate", run.rollout), ("label", run.judging)) if section.gives_way
        ),
        seed=run.seed,
    )
    found = SharedRun(work, machine).outcome()
    return {name: getattr(found, name) for name in FIELDS} | {"publish_s": rates.publish.load_s}


FIELDS = (
    "groups_per_s",
    "tokens_per_s",
    "busy",
    "utilisation",
    "efficiency",
    "binding",
    "staleness_mean",
    "staleness_p50",
    "staleness_max",
)


def _trained(run: RunFile, rates: Rates) -> float:
    """Generated tokens of a batch, mean."""
    return rates.mean_answer * run.rollout.group_size * run.ledger.batch_groups


def _apart(run: RunFile, rates: Rates, split: Split, steps: int) -> dict[str, Any]:
    size = run.rollout.group_size
    step_s, token_s = rates.learn.with_ranks(split.ranks, _trained(run, rates))
    answer = rates.mean_answer
    held = max(2, 2 * run.judging.max_running // size)
    most = run.rollout.max_running
    scenario = Scenario(
        engines=split.engines,
        slots=max(2, 2 * most // size),
        accelerators_per_engine=split.engine_ranks,
        judges=split.judges,
        accelerators_per_judge=split.judge_ranks,
        judge_slots=held,
        learner_ranks=split.ranks,
        steps=steps,
        batch_groups=run.ledger.batch_groups,
        group_size=size,
        target_staleness=split.staleness,
        max_staleness=run.staleness.max_staleness,
        lockstep=run.ledger.lockstep and not split.staleness,
        seed=run.seed,
        lengths=Lengths(observed=rates.answer_tokens),
        prompt_tokens=max(1, round(rates.prompt_tokens)),
        rollout_rate=tuple((float(c), rates.rollout.tokens_per_s(c)) for c in _up_to(most)),
        judge_rate=tuple((float(n), rates.judging.groups_per_s(n)) for n in _up_to(held)),
        learner_s=step_s,
        # The rate counts generated tokens; a scenario counts the prompt with every answer.
        learner_s_per_token=token_s * answer / (answer + max(1, round(rates.prompt_tokens))),
        publish_s=rates.publish.load_s,
        publish_pause_s=rates.publish.load_s * PAUSE_SHARE,
        publish_at_once=min(split.engines, run.publish.engines_at_once),
        # Reports of unfinished answers would only cost events.
        recovery=RecoveryConfig(salvage_every_s=0),
        max_held_mib=run.ledger.max_held_mib,
        lease_s=run.ledger.lease_s,
        prices=Prices(),
    )
    found = simulate(scenario)
    return {
        "groups_per_s": found.groups_per_s,
        "tokens_per_s": found.tokens_per_s,
        "busy": {lane: found.busy.get(lane, 0.0) for lane in LANES},
        "utilisation": {lane: found.utilisation.get(lane, 0.0) for lane in LANES},
        "efficiency": found.efficiency,
        "binding": found.binding_stage,
        "publish_s": found.publish_s,
        "staleness_mean": found.staleness_mean,
        "staleness_p50": found.staleness_p50,
        "staleness_max": found.staleness_max,
    }


def _up_to(most: float) -> list[int]:
    """Concurrencies of a table, the last one the largest that there is."""
    last = max(1, math.ceil(most))
    return [*(c for c in CONCURRENCIES if c < last), last]
