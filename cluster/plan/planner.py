"""`make_plan`: from a run file and rates to a recommended split, what to expect of it, and what would move it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.config.run_file import RunFile
from cluster.plan.dividing import divided
from cluster.plan.hardware import Device
from cluster.plan.memory import RoleBytes, lacking, roles_of
from cluster.plan.prediction import ADMISSION, Prediction, predict
from cluster.plan.rates import Rates
from cluster.plan.splits import RANKS, Split, bound, running_of, splits_of, stalenesses_of, with_split
from solon.errors import InputError
from solon.models.sizes import ModelSizes

SIMULATED = 6
"""Splits that are simulated at first."""
CLIMBS = 5
"""Rounds in which workers are added to the best one."""
GROWTH = 0.25
RUNNERS_UP = 3
ALIKE = 0.02
"""Splits whose throughput differs by less are equally fast; then the fresher rollouts win."""
FRESHER = 0.25
"""Mean stalenesses that differ by less are equal; then fewer devices win."""
FASTER = 1.25
"""Of a lane, to see what it would move."""
BINDS = {
    "generate": "generation binds and more engines would share the same admitted answers",
    "label": "labelling binds",
    "learn": "learning binds and more ranks do not help or do not fit",
    "none": "nothing binds",
    ADMISSION: "ledger.batch_groups and staleness.target_staleness admit no more work",
}
LANE_NAMES = {"generate": "generation", "label": "labelling", "learn": "learning"}
CLOSE = 0.85
"""Of the busiest lane's share: predictions are not more exact than that."""
IDLE = 0.5
"""A lane that is busy for less of the time than this, on devices of its own, has too many of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purse:
    """What a device costs."""

    usd_per_hour: float
    is_placeholder: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The result."""

    run: RunFile
    """The run file with the recommended split."""
    rates: Rates
    device: Device | None
    purse: Purse
    roles: list[RoleBytes]
    best: Prediction
    runners_up: list[Prediction]
    moves: list[str]
    remarks: list[str]
    divided: list[str] = field(default_factory=list)
    """Why engines have several devices that the run file gives one, a sentence each; among the remarks as well."""

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "rates": {"source": self.rates.source, "machine": self.rates.machine, "date": self.rates.date},
            "device": self.device.name if self.device else self.rates.machine,
            "usd_per_device_hour": self.purse.usd_per_hour,
            "price_is_placeholder": self.purse.is_placeholder,
            "memory": [role.as_json() for role in self.roles],
            "recommended": self.best.as_json(),
            "max_running": self.run.rollout.max_running,
            "runners_up": [one.as_json() for one in self.runners_up],
            "moves": self.moves,
            "remarks": self.remarks,
            "divided": self.divided,
            "assumptions": list(self.rates.assumptions),
        }


def plan_here(run: RunFile, rates: Rates, sizes: dict[str, ModelSizes], purse: Purse) -> Plan:
    """For the cores that were measured, which all lanes share."""
    splits = [
        Split(
            engines=run.rollout.num_actors,
            judges=run.judging.num_actors,
            ranks=run.learn.num_ranks,
            staleness=target,
            on_cpu=True,
        )
        for target in stalenesses_of(run)
    ]
    return _planned(run, rates, sizes, None, purse, splits)


def plan_devices(
    run: RunFile,
    rates_for: Callable[[RunFile], Rates],
    sizes: dict[str, ModelSizes],
    *,
    gpus: int,
    gpus_per_node: int,
    device: Device,
    purse: Purse,
) -> Plan:
    """For this many devices. rates_for: of the run with its engines on as many devices as they need. Raises InputError
    when a role does not fit, or when there are too few."""
    run, reasons = divided(run, sizes, device, gpus_per_node=gpus_per_node)
    rates = rates_for(run)
    ranks = _ranks_that_fit(run, rates, sizes, device, gpus, gpus_per_node)
    engine, judge = run.rollout.tensor_parallel, run.judging.tensor_parallel
    splits = list(splits_of(gpus, ranks, stalenesses_of(run), engine_ranks=engine, judge_ranks=judge))
    if not splits:
        raise InputError(
            f"--gpus {gpus}, expected at least {engine + judge + 1}: an engine takes {engine} device(s), a judge "
            f"{judge} and the learner 1; use more devices{''.join(f' ({reason})' for reason in reasons)}"
        )
    # Devices of one worker fit, as each role was tried alone; only shared ones are left to look at.
    fitting = [split for split in splits if not (split.sharing and _lacks(run, rates, sizes, device, split))]
    if not fitting:
        first = splits[0]
        raise InputError(
            f"--gpus {gpus}: {'; '.join(_lacks(run, rates, sizes, device, first))}; use more devices, a smaller "
            "model, or lower rollout.max_model_len and learn.max_tokens_per_microbatch"
        )
    plan = _planned(run, rates, sizes, device, purse, fitting)
    remarks = [*reasons, *_unused(plan, gpus, fitting), *plan.remarks]
    return replace(plan, divided=reasons, remarks=remarks)


def _unused(plan: Plan, gpus: int, fitting: Sequence[Split]) -> list[str]:
    """Why devices are left idle, where some are."""
    best = plan.best
    idle = gpus - best.devices
    if not idle:
        return []
    if max(split.devices for split in fitting) <= best.devices:
        return [f"{idle} of {gpus} devices stay idle: no split of whole workers takes more of them"]
    return [
        f"{idle} of {gpus} devices stay idle: no split with more of them that was simulated is more than {ALIKE:.0%} "
        f"faster, since {BINDS[best.binds]}"
    ]


def _ranks_that_fit(
    run: RunFile, rates: Rates, sizes: dict[str, ModelSizes], device: Device, gpus: int, gpus_per_node: int
) -> list[int]:
    """Numbers of ranks of the learner. Raises InputError."""
    whole = Split(engines=1, judges=1, ranks=1, staleness=0)
    others = run.rollout.tensor_parallel + run.judging.tensor_parallel
    most = min(max(RANKS), gpus_per_node, max(1, gpus - others))
    tried = [count for count in RANKS if count <= most]
    found, last = [], ""
    for count in tried:
        split = replace(whole, ranks=count)
        learner = roles_of(with_split(run, split, sizes, rates), sizes, device=device)[-1:]
        missing = lacking(learner, device)
        last = missing[0] if missing else last
        found += [] if missing else [count]
    if not found:
        raise InputError(
            f"{last}, even with {tried[-1]} rank(s), the largest power of two that --gpus {gpus} (engine and judge "
            f"take {others}) and --gpus-per-node {gpus_per_node} allow; "
            "use more devices or another type, learn.lora, learn.advantages = 'group' (no critic), or "
            "learn.gradient_checkpointing"
        )
    return found


def _lacks(run: RunFile, rates: Rates, sizes: dict[str, ModelSizes], device: Device, split: Split) -> list[str]:
    names = {"generate": "rollout", "label": "judge", "learn": "learner"}
    roles = roles_of(with_split(run, split, sizes, rates), sizes, device=device)
    return lacking(roles, device, tuple(names[lane] for lane in split.sharing))


def _planned(
    run: RunFile,
    rates: Rates,
    sizes: dict[str, ModelSizes],
    device: Device | None,
    purse: Purse,
    splits: Sequence[Split],
) -> Plan:
    def simulated(split: Split) -> Prediction:
        return predict(run, rates, split, usd_per_hour=purse.usd_per_hour)

    found = [simulated(split) for split in _likely(run, rates, splits)]
    _climbed(found, simulated, max(split.devices for split in splits), sorted({split.ranks for split in splits}))
    found.sort(key=lambda one: -one.groups_per_s)
    alike = [one for one in found if one.groups_per_s >= (1 - ALIKE) * found[0].groups_per_s]
    best = min(alike, key=lambda one: (round(one.staleness_mean / FRESHER), one.devices, -one.groups_per_s))
    others = _different(best, found)[:RUNNERS_UP]
    planned = with_split(run, best.split, sizes, rates)
    return Plan(
        run=planned,
        rates=rates,
        device=device,
        purse=purse,
        roles=roles_of(planned, sizes, device=device, measured=rates if best.split.on_cpu else None),
        best=best,
        runners_up=others,
        moves=what_moves(run, rates, best, usd_per_hour=purse.usd_per_hour),
        remarks=[*rates.remarks(run), *remarks_on(run, best)],
    )


def _different(best: Prediction, found: Sequence[Prediction]) -> list[Prediction]:
    """The others, without those of which nothing differs but a target that is not reached."""

    def shown(one: Prediction) -> tuple[object, ...]:
        numbers = (one.groups_per_s, one.staleness_mean, *one.busy.values(), *one.utilisation.values())
        return (replace(one.split, staleness=0), *(f"{number:.3g}" for number in numbers))

    seen, others = {shown(best)}, []
    for one in found:
        if one is not best and shown(one) not in seen:
            seen.add(shown(one))
            others.append(one)
    return others


def _likely(run: RunFile, rates: Rates, splits: Sequence[Split]) -> list[Split]:
    """Those worth a simulation: the highest bounds, of equal ones those with the fewest devices."""

    def bounded(split: Split) -> int:
        # On-policy, little overlaps.
        most = 0.0 if split.on_cpu else bound(run, rates, split) * (0.5 if split.staleness == 0 else 1.0)
        # Bounds that differ by less are the same.
        return round(math.log(most) / ALIKE) if most > 0 else 0

    return sorted(splits, key=lambda split: (-bounded(split), split.devices, split.staleness))[:SIMULATED]


def _grown(split: Split, gpus: int, ranks: Sequence[int]) -> list[Split]:
    """The same with more workers of one lane, or of two: a bound leaves no room for chance."""
    if split.on_cpu or split.sharing:
        return []
    engines, judges = (count + max(1, round(count * GROWTH)) for count in (split.engines, split.judges))
    larger = [count for count in ranks if count > split.ranks][:1]
    found = [
        replace(split, engines=engines),
        replace(split, judges=judges),
        replace(split, engines=engines, judges=judges),
        *(replace(split, ranks=count) for count in larger),
    ]
    return [one for one in found if one.devices <= gpus]


def _climbed(
    found: list[Prediction], simulated: Callable[[Split], Prediction], gpus: int, ranks: Sequence[int]
) -> None:
    """Adds what grows from the best split while that pays."""
    for _ in range(CLIMBS):
        best = max(found, key=lambda one: one.groups_per_s)
        seen = {one.split for one in found}
        tried = [simulated(split) for split in _grown(best.split, gpus, ranks) if split not in seen]
        found += tried
        if max((one.groups_per_s for one in tried), default=0.0) < (1 + ALIKE) * best.groups_per_s:
            return


def what_moves(run: RunFile, rates: Rates, best: Prediction, *, usd_per_hour: float) -> list[str]:
    """Changes that would raise the throughput by more than a hundredth, the largest first."""
    found: list[tuple[float, str]] = []

    def tried(text: str, run: RunFile, rates: Rates, split: Split) -> None:
        other = predict(run, rates, split, usd_per_hour=usd_per_hour)
        gain = other.groups_per_s / best.groups_per_s - 1
        if gain > 0.01:
            found.append((gain, f"{text}: {gain:+.0%} groups/s, mean staleness {other.staleness_mean:.2f}"))

    for lane, name in LANE_NAMES.items():
        tried(f"{name} {FASTER - 1:.0%} faster", run, _faster(rates, lane), best.split)
    batch = run.ledger.batch_groups
    larger = run.model_copy(update={"ledger": run.ledger.model_copy(update={"batch_groups": 2 * batch})})
    tried(f"ledger.batch_groups = {2 * batch} in place of {batch}", larger, rates, best.split)
    if best.split.staleness < run.staleness.max_staleness:
        later = replace(best.split, staleness=best.split.staleness + 1)
        tried(f"staleness.target_staleness = {later.staleness}", run, rates, later)
    return [text for _, text in sorted(found, key=lambda one: -one[0])]


def _faster(rates: Rates, lane: str) -> Rates:
    name = {"generate": "rollout", "label": "judging", "learn": "learn"}[lane]
    part = getattr(rates, name)
    seconds = {key: value / FASTER for key, value in part.model_dump().items() if key.endswith("_s")}
    return rates.model_copy(update={name: part.model_copy(update=seconds)})


def remarks_on(run: RunFile, best: Prediction) -> list[str]:
    """What a person should know of the recommended split."""
    found: list[str] = []
    close = [lane for lane, share in best.busy.items() if lane != best.binding and share > CLOSE * best.efficiency]
    if close and best.binds != ADMISSION:
        names = " and ".join(LANE_NAMES[lane] for lane in close)
        found.append(f"{names} nearly binds too: which lane is the busiest is not certain")
    if best.split.on_cpu:
        return found
    if best.binds == ADMISSION:
        lane = best.binding
        found.append(
            f"binds: admission. No lane is full: {LANE_NAMES.get(lane, lane)} is the busiest, {best.efficiency:.0%} of "
            f"the time with {best.utilisation.get(lane, 0.0):.0%} of its throughput in use; ledger.batch_groups and "
            "staleness.target_staleness limit how many answers are under way"
        )
    running = running_of(run, best.split)
    if running < run.rollout.max_running / 2:
        wanted = math.ceil(best.split.engines * run.rollout.max_running / (best.split.staleness + 1))
        found.append(
            f"an engine decodes at most {running:.0f} answers together, max_running allows {run.rollout.max_running}: "
            f"ledger.batch_groups = {math.ceil(wanted / run.rollout.group_size)} would fill the engines, at the price "
            "of fewer steps for the same prompts"
        )
    if best.split.engines > 1 and best.publish_s > best.step_s / 2:
        found.append(
            f"a version takes {best.publish_s:.3g} s until all {best.split.engines} engines have it, a step "
            f"{best.step_s:.3g} s: {run.publish.engines_at_once} take it at the same time (publish.engines_at_once)"
        )
    idle = [lane for lane, share in best.busy.items() if share < IDLE]
    if best.split.devices > 3 and idle:
        shares = ", ".join(f"{LANE_NAMES[lane]} {best.busy[lane]:.0%}" for lane in idle)
        found.append(f"busy for less than half of the time: {shares}; fewer devices would do nearly the same")
    return found
