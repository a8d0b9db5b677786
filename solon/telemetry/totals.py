"""The running totals of a run: the source of metrics.jsonl, summary.json and the live view."""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from solon.clock import Clock
from solon.events import is_counted
from solon.feedback.quality.position import PositionCount
from solon.ledger.ledger import Lease
from solon.protocols import GenerationReport, LabelReport
from solon.records import LoadReceipt, Span, StepReport
from solon.telemetry.groups import GroupRecords
from solon.telemetry.movement import Movement
from solon.telemetry.overlap import Busy, Overlap

RECENT_SPANS = 4000
COUNTS = (
    "steps",
    "rollouts",
    "tokens",
    "groups_generated",
    "labels",
    "invalid",
    "questions",
    "cache_hits",
    "prompt_tokens",
    "cached_tokens",
    "published_versions",
    "max_gap",
    "mean_gap",
    "learners_apart",
)
"""Attributes of the totals that are plain numbers."""


class RunTotals:
    """Written by the recorder, read by views and summary. Single-threaded: used only on the event loop."""

    def __init__(
        self,
        *,
        staleness_bound: int,
        total_steps: int,
        is_relative: bool = False,
        movement: Movement | None = None,
        clock: Clock | None = None,
    ) -> None:
        """is_relative: rewards compare answers of one prompt, so that their mean has no meaning."""
        self._clock = clock or Clock()
        self.movement = movement or Movement()
        self.groups = GroupRecords(self._clock)
        self.is_relative = is_relative
        self.staleness_bound = staleness_bound
        self.total_steps = total_steps
        self.started_s = self._clock.wall()
        self.ended_s: float | None = None
        self.steps = 0
        self.rewards: list[float] = []
        """Mean reward of every step's batch; NaN where the learner reported none."""
        self.spreads: list[float] = []
        """Standard deviation of the rewards inside a group, mean of every step's batch."""
        self.staleness: Counter[int] = Counter()
        """Groups trained, by staleness."""
        self.rollouts = self.tokens = self.groups_generated = 0
        self.labels = self.invalid = self.questions = self.cache_hits = 0
        self.prompt_tokens = self.cached_tokens = 0
        self.invalid_by_status: Counter[str] = Counter()
        self.position = PositionCount()
        self.published_versions = 0
        self.max_gap = self.mean_gap = 0.0
        self.pauses_s: list[float] = []
        self.busy = Busy()
        self.spans: deque[Span] = deque(maxlen=RECENT_SPANS)
        """The most recent ones, for the live view."""
        self.last: dict[str, Any] = {}
        """The last line of metrics.jsonl."""
        self.faults: Counter[str] = Counter()
        """Workers lost, workers recovered, and so on, by event."""
        self.learners_apart = 0
        """Rebuilt learners whose weights differ from those of the lost one."""
        self.last_alarm: Mapping[str, Any] = {}
        """The latest alarm of the watch."""
        self.last_drop = ""
        """Why the latest group was dropped."""
        self._before_s = 0.0

    def begin(self) -> None:
        """The clock of the run starts: the engines are warm."""
        self.started_s, self.ended_s = self._clock.wall(), None

    def end(self) -> None:
        """The clock stops: later work (evaluation, checkpoint) is not training. A second call changes nothing."""
        if self.ended_s is None:
            self.ended_s = self._clock.wall()

    @property
    def wall_s(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._before_s + max((self.ended_s or self._clock.wall()) - self.started_s, 1e-9)

    def fault(self, name: str, fields: Mapping[str, Any] | None = None) -> None:
        """Count an event if it reports a fault or a recovery. fields: of the event."""
        if is_counted(name):
            self.faults[name] += 1
        if name in ("lane_joined", "lane_left"):
            note = self.busy.joined if name == "lane_joined" else self.busy.left
            note(str((fields or {}).get("worker", "")), self.wall_s)
        if name == "alarm":
            self.last_alarm = fields or {}
        if name == "learner_trained_again" and not (fields or {}).get("same_weights", True):
            self.learners_apart += 1

    def state(self) -> dict[str, Any]:
        """Everything counted so far, as JSON: a resumed run continues from it."""
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "wall_s": self.wall_s,
            "rewards": [reward if math.isfinite(reward) else None for reward in self.rewards],
            "spreads": [spread if math.isfinite(spread) else None for spread in self.spreads],
            "staleness": sorted(self.staleness.items()),
            "invalid_by_status": dict(self.invalid_by_status),
            "position": self.position.state(),
            "faults": dict(self.faults),
            "busy": self.busy.totals(),
            "presence": self.busy.presence(),
            "movement": self.movement.state(),
            "groups": self.groups.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        for name in COUNTS:
            setattr(self, name, state.get(name, 0))  # a count may be younger than the checkpoint
        self._before_s = state["wall_s"]
        self.rewards = [math.nan if reward is None else reward for reward in state["rewards"]]
        self.spreads = [math.nan if spread is None else spread for spread in state.get("spreads", [])]
        self.staleness = Counter(dict(state["staleness"]))
        self.invalid_by_status = Counter(state["invalid_by_status"])
        self.position = PositionCount(**state.get("position", {}))
        self.faults = Counter(state["faults"])
        self.busy.add_totals(state["busy"])
        self.busy.add_presence(state.get("presence", ({}, {})))
        # A checkpoint of an older version lacks it: every step counts as one that moved the policy.
        unknown = {"steps": self.steps, "moved": self.steps, "still": {}, "cut_steps": 0, "last_cut": ""}
        self.movement.restore(state.get("movement", unknown))
        self.groups.restore(state.get("groups", ()))

    def generated(self, report: GenerationReport) -> None:
        """Count a generated group."""
        self.groups_generated += 1
        self.groups.generated(report)
        self.tokens += report.num_tokens
        self._add_spans(report.spans)

    def labelled(self, report: LabelReport) -> None:
        """Count the labels of a group."""
        self.rollouts += report.num_rollouts
        self.groups.labelled(report)
        self.labels += report.labels
        self.invalid += report.invalid
        self.questions += report.questions
        self.cache_hits += report.cache_hits
        self.prompt_tokens += report.prompt_tokens
        self.cached_tokens += report.cached_tokens
        self.invalid_by_status.update(dict(report.invalid_by_status))
        self.position.add(report.pairs)
        self._add_spans(report.spans)

    def stepped(self, lease: Lease, report: StepReport) -> dict[str, Any]:
        """Counts a committed step; returns its line for metrics.jsonl."""
        self.steps += 1
        self.movement.add(report)
        self.staleness.update(lease.staleness)
        self._add_spans(report.spans)
        self.rewards.append(report.metrics.get("learn/reward/mean", math.nan))
        self.spreads.append(report.metrics.get("learn/reward_in_group/std", math.nan))
        overlap = self.overlap()
        self.last = {
            "step": lease.step,
            "time": self._clock.wall(),
            "batch/ordinals": list(lease.ordinals),
            "batch/staleness/max": max(lease.staleness),
            "batch/staleness/mean": statistics.fmean(lease.staleness),
            "label/invalid/share": self.invalid / max(1, self.labels),
            "label/cache_hit/share": self.cache_hits / max(1, self.questions),
            "label/prefix_hit/share": self.cached_tokens / max(1, self.prompt_tokens),
            "overlap/efficiency": overlap.efficiency,
            **{f"overlap/busy/{lane}": share for lane, share in overlap.busy.items()},
            **{key: value if math.isfinite(value) else None for key, value in report.metrics.items()},
        }
        return self.last

    def published(self, version: int, receipts: Sequence[LoadReceipt], gap: float, span: Span) -> None:
        """Count an attested version. gap: largest canary difference so far, nats."""
        self.published_versions = max(self.published_versions, version)
        self.max_gap = gap
        self.mean_gap = max([self.mean_gap, *(receipt.mean_gap for receipt in receipts)])
        self.pauses_s += [receipt.pause_s for receipt in receipts]
        self._add_spans([span])

    def overlap(self) -> Overlap:
        """Since the run began."""
        return self.busy.overlap(wall_s=self.wall_s)

    def summary(self, *, status: str, counts: Mapping[str, int], attested: int, injected: int = 0) -> dict[str, Any]:
        """The contents of summary.json except the evaluation. injected: faults that a test caused on purpose."""
        wall_s = self.wall_s
        overlap = self.overlap()
        return {
            "status": status,
            "warnings": [text for text in (self.position.warning(), self._apart()) if text],
            "steps": self.steps,
            "steps_moved": self.movement.moved,
            "wall_s": round(wall_s, 3),
            "reward": {
                **_first_and_last(self.rewards),
                "relative": self.is_relative,
                "spread": _first_and_last(self.spreads),
            },
            "labels": {
                "total": self.labels,
                "valid": self.labels - self.invalid,
                "invalid": self.invalid,
                "cache_hits": self.cache_hits,
                "questions": self.questions,
                "invalid_by_status": dict(self.invalid_by_status),
                "prefix_hit_share": round(self.cached_tokens / max(1, self.prompt_tokens), 4),
            },
            "staleness": {
                "max": max(self.staleness, default=0),
                "p50": int(statistics.median_low(self.staleness.elements())) if self.staleness else 0,
                "bound": self.staleness_bound,
            },
            "groups": {key: counts[key] for key in ("admitted", "committed", "dropped", "held")},
            "overlap": {
                "efficiency": round(overlap.efficiency, 4),
                "binding_stage": overlap.binding_stage,
                "busy": {lane: round(share, 4) for lane, share in overlap.busy.items()},
                "speedup_bound": round(overlap.speedup_bound, 3),
            },
            "weights": {
                "published": self.published_versions,
                "attested": attested,
                "max_logprob_gap": self.max_gap,
                "mean_logprob_gap": self.mean_gap,
                "pause_s_p50": round(statistics.median(self.pauses_s), 4) if self.pauses_s else None,
            },
            "throughput": {
                "rollouts_per_s": round(self.rollouts / wall_s, 2),
                "labels_per_s": round((self.labels - self.invalid) / wall_s, 2),
                "tokens_per_s": round(self.tokens / wall_s, 1),
            },
            "faults": {
                "injected": injected,
                "recovered": self.faults["worker_recovered"] + self.faults["resumed"],
                "by_event": dict(self.faults),
            },
        }

    def _apart(self) -> str | None:
        if not self.learners_apart:
            return None
        times = "once" if self.learners_apart == 1 else f"{self.learners_apart} times"
        return (
            f"a lost learner was trained again to other weights than it had ({times}): the kernels of this machine do "
            "not repeat exactly. The run is sound, since groups keep the log-probs that they were drawn with, but it "
            "cannot be repeated to the bit"
        )

    def _add_spans(self, spans: Sequence[Span]) -> None:
        self.spans.extend(spans)
        for span in spans:
            self.busy.add(span)


def _first_and_last(values: Sequence[float]) -> dict[str, float | None]:
    """Means of the first and of the last tenth."""
    tenth = max(1, len(values) // 10)
    return {"first": _mean(values[:tenth]), "last": _mean(values[-tenth:])}


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return statistics.fmean(known) if known else None
