"""What goes to a monitoring system: bounded labels, counts as in the totals, and every metric of the table."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from solon.events import EVENTS, Severity
from solon.ledger.ledger import Grant, Lease
from solon.protocols import GenerationReport, LabelReport
from solon.records import LoadReceipt, Span, StepReport
from solon.telemetry.exports import METRICS, Metric, Moment, PoolMoment, RunExports, drop_label
from solon.telemetry.totals import RunTotals

Key = tuple[str, frozenset[tuple[str, str]]]
METRIC_NAME = re.compile(r"solon_[a-z][a-z0-9_]*")


class Kept:
    """A meter that keeps what it is told."""

    def __init__(self) -> None:
        self.counts: Counter[Key] = Counter()
        self.gauges: dict[Key, float] = {}

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        assert metric.kind == "counter"
        assert value >= 0
        self.counts[self._key(metric, labels)] += value  # type: ignore[assignment]

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        assert metric.kind == "gauge"
        self.gauges[self._key(metric, labels)] = value

    def _key(self, metric: Metric, labels: Mapping[str, str]) -> Key:
        assert labels.keys() == metric.labels.keys(), metric.name
        for label, value in labels.items():
            assert value in metric.labels[label], f"{metric.name} got {label}={value}"
        return metric.name, frozenset(labels.items())

    def count(self, name: str, **labels: str) -> float:
        return self.counts[f"solon_{name}", frozenset(labels.items())]

    def gauge(self, name: str, **labels: str) -> float:
        return self.gauges[f"solon_{name}", frozenset(labels.items())]


def span(lane: str, seconds: float) -> Span:
    return Span(lane=lane, worker=f"{lane}-0", name="work", start_s=0.0, end_s=seconds)  # type: ignore[arg-type]


def make() -> tuple[RunExports, RunTotals, Kept]:
    totals, kept = RunTotals(staleness_bound=4, total_steps=10), Kept()
    return RunExports(totals, kept, lanes={"policy": "generate", "judge": "label", "learner": "learn"}), totals, kept


GENERATED = GenerationReport(
    ordinal=0, attempt=0, head=0, num_tokens=20, nbytes=1, spans=(span("generate", 2.0),), cache_use=0.25
)
LABELLED = LabelReport(
    ordinal=0, attempt=0, num_rollouts=4, num_valid=3, reward_mean=0.5, labels=8, invalid=2, questions=10, cache_hits=4,
    prompt_tokens=100, cached_tokens=60, nbytes=1, spans=(span("label", 0.5),),
)  # fmt: skip
LEASE = Lease(step=0, token=1, ordinals=(0, 1), staleness=(1, 3), payloads=())
STEP = StepReport(
    step=0, spans=(span("learn", 1.5),),
    metrics={"learn/reward/mean": 0.5, "learn/reward_in_group/std": 0.2, "learn/kl_reference/mean": 0.01},
)  # fmt: skip
RECEIPT = LoadReceipt(
    engine="rollout-0", version=1, fingerprint="", checksum="", canary_logprobs=(), pause_s=0.125, mean_gap=1e-5
)
MOMENT = Moment(
    groups={"ready": 3, "held_bytes": 100, "unwritten_bytes": 10}, batch_groups=4, still_s=1.5,
    workers={"generate": ["up", "being replaced"], "label": ["up"], "learn": ["given up"]},
    pools={
        "generate": PoolMoment(held=6, room=8, least=1, most=3),
        "label": PoolMoment(held=0, room=0, least=1, most=1),
    },
)  # fmt: skip


def play(exports: RunExports, totals: RunTotals) -> None:
    """One step, as the recorder reports it: the totals first."""
    exports.granted("rollout-0", [Grant(0, 0, 0), Grant(1, 1, 0)])
    totals.generated(GENERATED)
    exports.generated(GENERATED, None)
    totals.labelled(LABELLED)
    exports.labelled(LABELLED, None)
    totals.stepped(LEASE, STEP)
    exports.stepped(LEASE, STEP)
    totals.published(1, [RECEIPT], 1e-4, span("publish", 0.25))
    exports.published(1, [RECEIPT], 1e-4, span("publish", 0.25))


def test_counters_say_what_was_done():
    exports, totals, kept = make()
    play(exports, totals)
    stages = ("admitted", "generated", "labelled", "trained")
    assert [kept.count("groups", stage=stage) for stage in stages] == [1, 1, 1, 2]  # one was generated before
    assert [kept.count("labels", result=result) for result in ("valid", "invalid")] == [6, 2]
    assert [kept.count("questions", source=source) for source in ("judge", "cache")] == [6, 4]
    assert [kept.count("tokens", kind=kind) for kind in ("generated", "judge_read", "judge_cached")] == [20, 40, 60]
    lanes = ("generate", "label", "learn", "publish")
    assert [kept.count("busy_seconds", lane=lane) for lane in lanes] == [2, 0.5, 1.5, 0.25]
    assert (kept.count("rollouts"), kept.count("versions"), kept.count("loads")) == (4, 1, 1)
    assert kept.count("steps", result="moved") == 1


def test_gauges_are_sent_with_a_sample_and_again_with_the_next_one():
    exports, totals, kept = make()
    play(exports, totals)
    assert not kept.gauges
    for _ in range(2):
        kept.gauges.clear()
        exports.sample(MOMENT)
        assert kept.gauge("staleness_steps", stat="max") == 3
        assert kept.gauge("reward", stat="spread") == 0.2
        assert kept.gauge("kv_cache_use_ratio") == 0.25
        assert kept.gauge("queue_groups", state="ready") == 3
        assert kept.gauge("queue_groups", state="leased") == 0
        assert [kept.gauge("workers", lane="generate", state=s) for s in ("up", "replaced", "given_up")] == [1, 1, 0]
        assert kept.gauge("occupancy_ratio", lane="generate") == 0.75
        assert kept.gauge("occupancy_ratio", lane="label") == 0
        assert kept.gauge("version") == kept.gauge("step") == 1


def test_every_metric_of_the_table_is_set_and_no_series_is_outside_it():
    exports, totals, kept = make()
    play(exports, totals)
    totals.stepped(LEASE, STEP)
    exports.stepped(LEASE, STEP)
    exports.sample(MOMENT)
    seen = {name for name, _ in (*kept.counts, *kept.gauges)}
    assert seen == {metric.name for metric in METRICS.values()}  # labels are checked by the meter


def test_every_counter_begins_with_all_of_its_series_at_0():
    _, _, kept = make()
    expected = sum(len(list(metric.series())) for metric in METRICS.values() if metric.kind == "counter")
    assert len(kept.counts) == expected
    assert set(kept.counts.values()) == {0}


def test_a_run_has_a_few_hundred_series_at_most():
    assert sum(len(list(metric.series())) for metric in METRICS.values()) < 200


def test_names_are_those_of_prometheus():
    for name, metric in METRICS.items():
        assert METRIC_NAME.fullmatch(metric.name), name
        assert not metric.name.endswith("_total")  # Ray adds it
        for label in metric.labels:
            assert re.fullmatch(r"[a-z]+", label)
            assert label not in ("run", "job", "instance", "le")


@pytest.mark.parametrize("severity", list(Severity))
def test_events_are_counted_by_name_whatever_they_say(severity: Severity):
    exports, _, kept = make()
    counter = {Severity.FAULT: "faults", Severity.WARNING: "warnings", Severity.INFO: "changes"}[severity]
    for kind in (kind for kind in EVENTS.values() if kind.severity is severity):
        fields = {"pool": "policy", "before": 1, "after": 2, "reason": "why", "ordinal": 1, "worker": "rollout-17"}
        exports.event(kind.name, **fields)
        if severity is not Severity.INFO or kind.is_shown:
            assert kept.count(counter, event=kind.name) == 1


def test_resizes_are_counted_by_lane_and_direction():
    exports, _, kept = make()
    exports.event("resized", pool="policy", before=1, after=3, reason="")
    exports.event("resized", pool="judge", before=3, after=1, reason="")
    exports.event("resized", pool="another", before=1, after=2, reason="")
    assert kept.count("resizes", lane="generate", direction="grow") == 1
    assert kept.count("resizes", lane="label", direction="shrink") == 1
    assert sum(count for (name, _), count in kept.counts.items() if name == "solon_resizes") == 2


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("fewer than 2 rollouts with a valid label (low_mass 3, truncated 1)", "unsure"),
        ("fewer than 2 rollouts with a valid label (truncated 8)", "truncated"),
        ("fewer than 2 rollouts with a valid label (transport_error 8)", "judge_failed"),
        ("lost 10 times, last: rollout-0 died", "lost"),
        ("generating took too long", "too_late"),
        ("something of a later version", "other"),
    ],
)
def test_a_reason_for_dropping_becomes_one_of_a_few_labels(reason: str, label: str):
    assert drop_label(reason) == label
    exports, _, kept = make()
    exports.event("group_dropped", ordinal=4711, reason=reason)
    assert kept.count("groups_dropped", reason=label) == 1


def test_what_is_not_finite_is_not_exported():
    exports, totals, kept = make()
    report = StepReport(step=0, metrics={"learn/reward/mean": float("nan")})
    totals.stepped(LEASE, report)
    exports.stepped(LEASE, report)
    exports.sample(MOMENT)
    assert not any(name in ("solon_reward", "solon_kl_reference_nats") for name, _ in kept.gauges)


def test_the_table_of_the_documentation_is_the_table_of_the_code():
    page = (Path(__file__).resolve().parents[3] / "docs" / "observability.md").read_text()
    documented = dict(re.findall(r"^\| `(ray_solon_\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert documented.keys() == {metric.exported for metric in METRICS.values()}
    for metric in METRICS.values():
        for label in metric.labels:
            assert f"`{label}`" in documented[metric.exported], (metric.exported, label)


def test_an_event_costs_microseconds():
    exports, totals, _ = make()
    play(exports, totals)
    began = time.perf_counter()
    for _ in range(2000):
        exports.generated(GENERATED, None)
        exports.labelled(LABELLED, None)
    assert (time.perf_counter() - began) / 4000 < 1e-3  # about 10 us, and 20 with Ray; the limit is for busy machines


def test_the_fullest_cache_since_the_last_sample_is_shown():
    exports, _, kept = make()
    for use in (0.25, 0.75, 0.0):
        exports.generated(replace(GENERATED, cache_use=use), None)
    exports.sample(MOMENT)
    assert kept.gauge("kv_cache_use_ratio") == 0.75
    exports.generated(replace(GENERATED, cache_use=0.125), None)
    exports.generated(replace(GENERATED, cache_use=None), None)
    exports.sample(MOMENT)
    assert kept.gauge("kv_cache_use_ratio") == 0.125
