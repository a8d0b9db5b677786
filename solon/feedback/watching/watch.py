"""Watches the labels of a run: receives labels, audits and measurements, and raises alarms.

    labelled groups ──▶ symptoms      ┐
    audited rollouts ──▶ windows      ├──▶ poll(step) ──▶ alarms, each with an action
    KL to the reference ──▶ distance  │
    canary verdicts ──▶ flips         ┘

It judges nothing and changes nothing: the caller asks the gold judge, runs the canaries and acts on the alarms.
Single-threaded.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.audit import Audited, chosen, pair_up
from solon.feedback.watching.canary import CanaryReading
from solon.feedback.watching.drift import Reason, Window, decide, window_of
from solon.feedback.watching.evidence import metrics_of, of_windows
from solon.feedback.watching.gap import Gap
from solon.feedback.watching.principles import PrincipleDrift, describe
from solon.feedback.watching.raised import RaisedAlarms
from solon.feedback.watching.symptom_watch import SymptomWatch
from solon.feedback.watching.watch_config import CanaryConfig, WatchConfig
from solon.feedback.watching.watch_state import WatchState
from solon.records import Feedback, Group

KEPT_STEPS = 4096
"""KL values that are kept: enough for the slowest audit."""


class Watch:
    """`watch.observe(...)`, `watch.audit(...)`, `watch.kl(...)`, `watch.canary(...)`; then `watch.poll(step)`.

    is_relative: rewards compare the answers of one group (pairwise), so that their level has no meaning.
    """

    def __init__(
        self,
        config: WatchConfig,
        *,
        seed: int = 0,
        is_relative: bool = False,
        canaries: CanaryConfig | None = None,
    ) -> None:
        self.config = config
        self.canaries = canaries or CanaryConfig()
        self._seed = seed
        self._is_relative = is_relative
        self.windows: list[Window] = []
        """Finished windows of audited rollouts."""
        self._audited: list[Audited] = []
        self._asked = self._missing = 0
        self._gap: Gap | None = None
        self._kl: deque[tuple[int, float]] = deque(maxlen=KEPT_STEPS)
        self._past: list[Window] = []
        """Windows of another judge, from before the run was resumed with this one."""
        self._principles = PrincipleDrift(reference_windows=config.reference_windows, part=config.collapse_part)
        self._alarms = RaisedAlarms()
        self._symptoms = SymptomWatch(config, self._alarms)
        self._canary_held = 0
        """Step of the last reading of the canary pairs that equalled the first."""
        self._metrics: dict[str, float] = {}

    # -- inputs -------------------------------------------------------------------------------------------

    def chosen(self, ordinal: int, attempt: int, num_rollouts: int) -> tuple[int, ...]:
        """Indices of a group's rollouts for gold to judge."""
        return chosen(ordinal, attempt, num_rollouts, share=self.config.audit_share, seed=self._seed)

    @property
    def wants_answers(self) -> bool:
        """Whether the symptom window has room; further answers are not kept."""
        return self._symptoms.has_room

    def observe(self, group: Group, feedback: Feedback) -> None:
        """Add a labelled group."""
        self._symptoms.observe(group, feedback)

    def audit(self, group: Group, rollouts: Sequence[int], proxy: Feedback, gold: Feedback) -> None:
        """Add gold's feedback on the `excerpt` of a group with these rollouts, and the judge's on the whole group."""
        pairs, missing = pair_up(group, rollouts, proxy, gold)
        self._audited += pairs
        self._asked += len(rollouts)
        self._missing += missing
        self._principles.observe(gold)

    def kl(self, step: int, value: float) -> None:
        """KL of policy version `step` to the reference, nats per answer."""
        if math.isfinite(value) and value >= 0:
            self._kl.append((step, value))

    def is_canary_due(self, step: int) -> bool:
        """Whether the canary pairs must be judged before this step."""
        return step % self.canaries.every == 0

    def canary(self, reading: CanaryReading) -> None:
        """Add a reading of the canary pairs. Raises the alarm `canary` when the judge has changed."""
        self._metrics |= reading.metrics()
        too_many = reading.flips > self.canaries.flips
        changed = self.canaries.is_repeatable and not reading.is_identical
        threshold = 0.0 if changed and not too_many else self.canaries.flips
        what = (
            f"the judge says the opposite on {reading.flips:.1%} of the canary pairs"
            if too_many
            else f"the judge's margins on the canary pairs moved by up to {reading.largest_change:.3g} nats"
        )
        self._alarms.check(
            "canary",
            when=too_many or changed,
            step=reading.step,
            value=reading.flips if too_many else reading.largest_change,
            threshold=threshold,
            message=f"{what}, compared with its first reading: the judge has changed",
            evidence=f"{reading.flips:.1%} of the pairs turned around, {reading.silent:.1%} without verdict, accuracy "
            f"{reading.accuracy:.1%} at step {reading.step}",
            action=self.canaries.action,
            sound_until=self._canary_held,
        )
        if not (too_many or changed):
            self._canary_held = reading.step

    # -- outputs ----------------------------------------------------------------------------------------------

    def poll(self, step: int) -> list[Alarm]:
        """New alarms after a committed step.

        An alarm is reported once while its condition holds, and again after it has cleared; a symptom and `near_peak`
        once in a run.
        """
        if len(self._audited) >= self.config.audit_window:
            self._close_window(step)
        self._metrics |= self._symptoms.poll(step)
        return self._alarms.take()

    def drain_metrics(self) -> dict[str, float]:
        """`watch/...` and `symptom/...` of windows finished since the last call."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    @property
    def best(self) -> Window | None:
        """The window with the highest gold reward."""
        return max(self.known, key=lambda window: window.gold, default=None)

    @property
    def known(self) -> list[Window]:
        """All windows judged by gold, under this judge and earlier ones."""
        return [*self._past, *self.windows]

    @property
    def held_at(self) -> set[int]:
        """Values of `sound_until` that the next alarm could have."""
        return {
            self._symptoms.sound_until,
            self.windows[-3].last_step if len(self.windows) > 2 else 0,
            self._canary_held,
        }

    @property
    def standing(self) -> list[str]:
        """Kinds of raised alarms: they are not reported again until they have cleared."""
        return self._alarms.kinds

    # -- checkpoints ------------------------------------------------------------------------------

    def state(self) -> WatchState:
        """State for a checkpoint, without alarms that were not polled."""
        symptoms = self._symptoms.state()
        return WatchState(
            windows=tuple(self.windows),
            audited=tuple(self._audited),
            asked=self._asked,
            missing=self._missing,
            kl=tuple(self._kl),
            symptoms=symptoms.symptoms,
            symptoms_due=symptoms.symptoms_due,
            raised=self._alarms.reported,
            principles=self._principles.state(),
            closes=symptoms.closes,
            canary_held=self._canary_held,
            past=tuple(self._past),
        )

    def restore(self, state: WatchState) -> None:
        """Continue from a checkpoint. A raised alarm is not reported again."""
        self.windows = list(state.windows)
        self._audited = list(state.audited)
        self._asked, self._missing = state.asked, state.missing
        self._kl.extend(state.kl)
        self._symptoms.restore(state)
        self._alarms.restore(state.raised)
        self._principles.restore(state.principles)
        self._canary_held = state.canary_held
        self._past = list(state.past)
        reference = self.config.reference_windows
        if len(self.windows) >= reference:
            self._gap = self._new_gap(self.windows[:reference])
            for window in self.windows[reference:]:
                self._gap.add(window)

    # -- windows of audited rollouts -----------------------------------------------------------------------------

    def _close_window(self, step: int) -> None:
        audited, self._audited = self._audited, []
        window = window_of(audited, distance=self._distance(audited))
        self.windows.append(window)
        self._watch_missing(step)
        is_wide = False
        if len(self.windows) == self.config.reference_windows:
            self._gap = self._new_gap(self.windows)
        elif self._gap is not None:
            is_wide = self._gap.add(window)
        self._metrics |= metrics_of(self.windows, self._gap, trend_windows=self.config.trend_windows)
        self._watch_principles(step)
        if self._gap is not None:
            self._alarms.check(
                "gap",
                when=is_wide,
                step=step,
                value=self._gap.cusum.value,
                threshold=self.config.gap_limit,
                message=f"the reward is {self._gap.value:.2f} standard deviations further above gold than it was in "
                f"the first {self.config.reference_windows} windows",
                evidence=of_windows(self.windows),
            )
        found = {reason.kind: reason for reason in self._decide()}
        for kind in ("near_peak", "past_peak", "gold_falls"):
            self._raise_reason(kind, found.get(kind), step)

    def _new_gap(self, reference: Sequence[Window]) -> Gap:
        config = self.config
        return Gap(reference, tolerance=config.gap_tolerance, slack=config.gap_slack, limit=config.gap_limit)

    def _decide(self) -> list[Reason]:
        config = self.config
        return decide(
            self.windows, trend_windows=config.trend_windows, near=config.near_peak, is_relative=self._is_relative
        )

    def _raise_reason(self, kind: str, reason: Reason | None, step: int) -> None:
        if reason is None:
            if kind != "near_peak":  # reported once: the distance is noisy, and a run may stay near the peak for long
                self._alarms.clear(kind)
            return
        best = self.best
        where = f"; gold was best at steps {best.first_step} to {best.last_step}" if best else ""
        self._alarms.check(
            kind,
            when=True,
            step=step,
            value=reason.value,
            threshold=reason.threshold,
            message=reason.message + where,
            evidence=of_windows(self.windows),
            action=self.config.action if reason.verdict == "act" else "warn",
        )

    def _watch_missing(self, step: int) -> None:
        share = self._missing / self._asked if self._asked else 0.0
        self._metrics["watch/audit_missing/share"] = share
        self._alarms.check(
            "missing_gold",
            when=share > self.config.missing_gold,
            step=step,
            value=share,
            threshold=self.config.missing_gold,
            message=f"{share:.1%} of the audited rollouts have no verdict, so the audit is no longer uniform",
        )
        self._asked = self._missing = 0

    def _distance(self, audited: Sequence[Audited]) -> float:
        first, last = min(one.step for one in audited), max(one.step for one in audited)
        values = [value for step, value in self._kl if first <= step <= last]
        values = values or [value for step, value in self._kl if step <= last][-1:]
        return math.sqrt(sum(values) / len(values)) if values else math.nan

    def _watch_principles(self, step: int) -> None:
        metrics, lost = self._principles.close()
        before = self.windows[-3].last_step if len(self.windows) > 2 else 0
        self._metrics |= metrics
        worst = min(lost, key=lambda one: one.now / one.was, default=None)
        self._alarms.check(
            "principle_lost",
            when=worst is not None,
            step=step,
            value=worst.now if worst else 0.0,
            threshold=self.config.collapse_part * worst.was if worst else 0.0,
            message=f"answers no longer obey {', '.join(one.principle for one in lost)}, by the auditing judge",
            evidence=f"{describe(lost)}, in two windows in a row, against the first {self.config.reference_windows}",
            action=self.config.action,
            sound_until=before,
        )
