"""The figures of a run that go to a monitoring system while it runs: their names, labels, meaning and source.

    exports = RunExports("night", meter)      # an observer of the loop; `meter` on Ray: cluster.ray_metrics
    exports.sample(moment)                    # every few seconds

Every label has a fixed set of values (`Label.values`), apart from `run`, the name of the run: no prompt, text, worker,
step or group is ever a label, so the number of series does not grow with a run. docs/observability.md has the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol

from solon.events import EVENTS, Severity
from solon.ledger.drops import kind_of
from solon.ledger.ledger import Grant, Lease
from solon.ledger.snapshot import State
from solon.protocols import GenerationReport, LabelReport, PayloadRef
from solon.records import LoadReceipt, Span, StepReport
from solon.telemetry.overlap import LANES
from solon.telemetry.totals import RunTotals

DROPS = ("unsure", "truncated", "judge_failed", "lost", "too_late", "other")
"""Why groups are dropped, as labels."""
_DROP_OF = {
    "low_mass": "unsure",
    "abstain": "unsure",
    "truncated": "truncated",
    "refusal": "judge_failed",
    "unparsable": "judge_failed",
    "timeout": "judge_failed",
    "transport_error": "judge_failed",
    "engine_error": "judge_failed",
    "budget_skip": "judge_failed",
}
POOLS = ("generate", "label")
WORKER_STATES = {"up": "up", "being replaced": "replaced", "given up": "given_up"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A counter's name in Prometheus has `_total` at its end, and every name begins with `ray_`."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    labels: Mapping[str, tuple[str, ...]]
    """The values of each label besides `run`."""

    @property
    def exported(self) -> str:
        """Its name in Prometheus, where Ray exports it."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"

    def series(self) -> Iterator[dict[str, str]]:
        """Every combination of label values."""
        for values in product(*self.labels.values()):
            yield dict(zip(self.labels, values, strict=True))


def _counter(name: str, meaning: str, **labels: tuple[str, ...]) -> Metric:
    return Metric(f"solon_{name}", "counter", meaning, labels)


def _gauge(name: str, meaning: str, **labels: tuple[str, ...]) -> Metric:
    return Metric(f"solon_{name}", "gauge", meaning, labels)


_COUNTER_OF = {Severity.FAULT: "faults", Severity.WARNING: "warnings", Severity.INFO: "changes"}


def _events(severity: Severity) -> tuple[str, ...]:
    """Names of the events of a severity; of normal operation only those that the view of a run shows."""
    return tuple(
        e.name for e in EVENTS.values() if e.severity is severity and (e.is_shown or severity is not Severity.INFO)
    )


_METRICS = (
    # -- work done: rates
    _counter("groups", "groups that reached a stage", stage=("admitted", "generated", "labelled", "trained")),
    _counter("groups_dropped", "groups given up, by reason", reason=DROPS),
    _counter("rollouts", "answers that were judged"),
    _counter("labels", "labels", result=("valid", "invalid")),
    _counter("questions", "questions to judges, by who answered", source=("judge", "cache")),
    _counter("tokens", "tokens: generated, and read by judges", kind=("generated", "judge_read", "judge_cached")),
    _counter("steps", "committed steps; `still`: the policy did not move", result=("moved", "still")),
    _counter("versions", "policy versions attested on every engine"),
    _counter("loads", "engines that took a version and proved it"),
    _counter("busy_seconds", "time in which workers of a lane were busy, added up", lane=(*LANES, "publish")),
    _counter("faults", "failures that the run dealt with, by event", event=_events(Severity.FAULT)),
    _counter("warnings", "events that need attention", event=_events(Severity.WARNING)),
    _counter("changes", "workers that joined, left or came back, and the like", event=_events(Severity.INFO)),
    _counter("resizes", "pools that the load made larger or smaller", lane=POOLS, direction=("grow", "shrink")),
    # -- where the run stands
    _gauge("step", "committed steps"),
    _gauge("steps_planned", "steps of the whole run"),
    _gauge("step_seconds", "time between the last two commits"),
    _gauge("version", "latest policy version that is attested on every engine"),
    _gauge("still_seconds", "time since the ledger last changed"),
    # -- lanes
    _gauge("workers", "workers of a lane, by state", lane=LANES, state=tuple(WORKER_STATES.values())),
    _gauge("workers_bound", "bounds of a pool's size; equal: it does not change", lane=POOLS, bound=("least", "most")),
    _gauge("occupancy_ratio", "groups that the workers hold, of those that they have room for", lane=POOLS),
    _gauge("busy_ratio", "share of time in which a lane was busy, since the start", lane=LANES),
    _gauge("overlap_ratio", "how well the lanes overlap, 1: the slowest one never waits"),
    _gauge("kv_cache_use_ratio", "largest share of a key-value cache in use, of all engines, in the last seconds"),
    # -- queues
    _gauge("queue_groups", "groups by state", state=tuple(str(state) for state in State)),
    _gauge("batch_groups", "groups of a batch"),
    _gauge("payload_bytes", "payloads kept: of groups held, and not yet written", kind=("held", "unwritten")),
    # -- quality
    _gauge("staleness_steps", "age of the oldest token of a group, last batch", stat=("max", "mean")),
    _gauge("staleness_bound_steps", "bound of the staleness"),
    _gauge("reward", "of the last batch, nats: mean, and standard deviation inside a group", stat=("mean", "spread")),
    _gauge("kl_reference_nats", "divergence from the reference a token, last batch"),
    _gauge("logprob_gap_nats", "canary log-probs, engines against learner, so far", stat=("max", "mean")),
    _gauge("publish_pause_seconds", "longest pause of an engine for the last version"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.name.removeprefix("solon_"): metric for metric in _METRICS}
"""Every metric, by its name without the prefix."""


class Meter(Protocol):
    """Where the figures go. Must not raise and must not block."""

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Increase a counter; 0 makes its series exist."""
        ...

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMoment:
    """A pool at one moment."""

    held: int
    """Groups that its workers hold."""
    room: int
    """Groups that they can hold."""
    least: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A run at one moment."""

    groups: Mapping[str, int]
    """The ledger's counts."""
    batch_groups: int
    still_s: float
    workers: Mapping[str, Sequence[str]]
    """States of the workers of each lane, as their guards report them."""
    pools: Mapping[str, PoolMoment]
    """By lane: generate, label."""


def drop_label(reason: str) -> str:
    """The label for a reason for dropping a group.

    >>> drop_label("fewer than 2 rollouts with a valid label (truncated 8)"), drop_label("lost 3 times, last: x")
    ('truncated', 'lost')
    """
    if reason.startswith("lost "):
        return "lost"
    if re.search(r"took too long$", reason):
        return "too_late"
    return _DROP_OF.get(kind_of(reason), "other")


class RunExports:
    """Implements `solon.protocols.Observer`. Used only on the event loop."""

    def __init__(self, totals: RunTotals, meter: Meter, *, lanes: Mapping[str, str]) -> None:
        """totals: of the run, updated before this observer is called. lanes: the lane of each pool, by its name."""
        self._totals = totals
        self._meter = meter
        self._lanes = lanes
        self._stepped_s: float | None = None
        self._cache_use: float | None = None
        """Largest one since the last sample."""
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for name, metric in METRICS.items():
            if metric.kind == "counter":  # a rate needs the 0 before the first increase
                for labels in metric.series():
                    self._add(name, 0, **labels)

    # -- the loop's observer -------------------------------------------------------------------------------------

    def granted(self, holder: str, grants: Sequence[Grant]) -> None:
        """Groups are handed to an engine; those without an earlier attempt are new."""
        self._some("groups", sum(grant.attempt == 0 for grant in grants), stage="admitted")

    def generated(self, report: GenerationReport, payload_ref: PayloadRef) -> None:
        """Count a generated group."""
        self._some("groups", 1, stage="generated")
        self._some("tokens", report.num_tokens, kind="generated")
        if report.cache_use is not None:
            self._cache_use = max(report.cache_use, self._cache_use or 0.0)
        self._busy(report.spans)

    def labelled(self, report: LabelReport, payload_ref: PayloadRef) -> None:
        """Count the labels of a group."""
        self._some("groups", 1, stage="labelled")
        self._some("rollouts", report.num_rollouts)
        self._some("labels", report.labels - report.invalid, result="valid")
        self._some("labels", report.invalid, result="invalid")
        self._some("questions", report.questions - report.cache_hits, source="judge")
        self._some("questions", report.cache_hits, source="cache")
        self._some("tokens", report.prompt_tokens - report.cached_tokens, kind="judge_read")
        self._some("tokens", report.cached_tokens, kind="judge_cached")
        self._busy(report.spans)

    def stepped(self, lease: Lease, report: StepReport) -> None:
        """Count a committed step."""
        self._some("groups", len(lease.ordinals), stage="trained")
        self._some("steps", 1, result="moved" if report.moved else "still")
        self._busy(report.spans)
        totals, last = self._totals, self._totals.last
        self._set("step", totals.steps)
        wall_s = totals.wall_s
        if self._stepped_s is not None:
            self._set("step_seconds", wall_s - self._stepped_s)
        self._stepped_s = wall_s
        for stat in ("max", "mean"):
            self._set("staleness_steps", last[f"batch/staleness/{stat}"], stat=stat)
        self._set("reward", totals.rewards[-1], stat="mean")
        self._set("reward", totals.spreads[-1], stat="spread")
        self._set("kl_reference_nats", report.metrics.get("learn/kl_reference/mean", math.nan))
        self._set("overlap_ratio", last["overlap/efficiency"])
        for lane in LANES:
            self._set("busy_ratio", last[f"overlap/busy/{lane}"], lane=lane)

    def published(self, version: int, receipts: Sequence[LoadReceipt], gap: float, span: Span) -> None:
        """Count an attested version. gap: largest canary difference so far, nats."""
        self._some("versions", 1)
        self._some("loads", len(receipts))
        self._busy((span,))
        self._set("version", version)
        self._set("logprob_gap_nats", gap, stat="max")
        self._set("logprob_gap_nats", self._totals.mean_gap, stat="mean")
        self._set("publish_pause_seconds", max((receipt.pause_s for receipt in receipts), default=0.0))

    def event(self, name: str, **fields: Any) -> None:
        """Count an event that needs attention or changes the run."""
        counter = _COUNTER_OF[EVENTS[name].severity]
        if name in METRICS[counter].labels["event"]:
            self._some(counter, 1, event=name)
        if name == "group_dropped":
            self._some("groups_dropped", 1, reason=drop_label(str(fields["reason"])))
        elif name == "resized" and (lane := self._lanes.get(fields["pool"])) in POOLS:
            direction = "grow" if fields["after"] > fields["before"] else "shrink"
            self._some("resizes", 1, lane=str(lane), direction=direction)

    # -- what only looking tells -----------------------------------------------------------------------------------

    def sample(self, moment: Moment) -> None:
        """Sets all gauges, those of the last step too: Ray forgets one that is not set again."""
        totals = self._totals
        self._set("step", totals.steps)
        self._set("steps_planned", totals.total_steps)
        self._set("version", totals.published_versions)
        self._set("staleness_bound_steps", totals.staleness_bound)
        self._set("still_seconds", moment.still_s)
        self._set("batch_groups", moment.batch_groups)
        for state in State:
            self._set("queue_groups", moment.groups.get(str(state), 0), state=str(state))
        for kind in ("held", "unwritten"):
            self._set("payload_bytes", moment.groups.get(f"{kind}_bytes", 0), kind=kind)
        for lane, states in moment.workers.items():
            for told, label in WORKER_STATES.items():
                self._set("workers", states.count(told), lane=lane, state=label)
        for lane, pool in moment.pools.items():
            self._set("workers_bound", pool.least, lane=lane, bound="least")
            self._set("workers_bound", pool.most, lane=lane, bound="most")
            self._set("occupancy_ratio", pool.held / pool.room if pool.room else 0.0, lane=lane)
        if self._cache_use is not None:
            self._set("kv_cache_use_ratio", self._cache_use)
            self._cache_use = None
        for (name, labels), value in self._gauges.items():
            self._meter.set(METRICS[name], value, dict(labels))

    def _busy(self, spans: Sequence[Span]) -> None:
        for span in spans:
            self._some("busy_seconds", span.end_s - span.start_s, lane=span.lane)

    def _some(self, name: str, count: float, **labels: str) -> None:
        if count > 0:
            self._add(name, count, **labels)

    def _add(self, name: str, count: float, **labels: str) -> None:
        self._meter.add(METRICS[name], count, labels)

    def _set(self, name: str, value: float, **labels: str) -> None:
        """Kept until the next `sample`: a gauge that is set twice between two exports costs once."""
        if math.isfinite(value):
            self._gauges[name, tuple(labels.items())] = float(value)
