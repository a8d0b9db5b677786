"""Compares the answers of a run with those of its first windows, and raises alarms for symptoms and collapse."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from solon.feedback.watching.raised import RaisedAlarms
from solon.feedback.watching.symptom_drift import Change, SymptomDrift
from solon.feedback.watching.watch_config import WatchConfig
from solon.feedback.watching.watch_state import WatchState
from solon.records import Feedback, Group


class SymptomWatch:
    """`watch.observe(group, feedback)` after each labelled group; `watch.poll(step)` after each committed step."""

    def __init__(self, config: WatchConfig, alarms: RaisedAlarms) -> None:
        self._config = config
        self._alarms = alarms
        self._drift = SymptomDrift(
            answers=config.symptom_answers,
            reference_windows=config.reference_windows,
            psi_limit=config.psi,
            alike=config.collapse_alike,
            part=config.collapse_part,
        )
        self._due = 0
        self._closes: deque[int] = deque([0, 0], maxlen=3)
        """Steps at which the last windows ended."""

    @property
    def has_room(self) -> bool:
        """Whether the unfinished window takes further answers."""
        return not self._drift.is_full

    @property
    def sound_until(self) -> int:
        """The last step that was sound if the next check finds a collapse."""
        return self._closes[0]

    def observe(self, group: Group, feedback: Feedback) -> None:
        """Add the answers of a labelled group."""
        self._drift.observe(group, feedback)

    def state(self) -> WatchState:
        """State for a checkpoint: the parts of a `WatchState` that concern symptoms."""
        return WatchState(symptoms=self._drift.state(), symptoms_due=self._due, closes=tuple(self._closes))

    def restore(self, state: WatchState) -> None:
        """Continue from a checkpoint."""
        self._drift.restore(state.symptoms)
        self._due = state.symptoms_due
        self._closes.extend(state.closes)

    def poll(self, step: int) -> dict[str, float]:
        """Close the window if it is due; returns the metrics of a closed window."""
        closed = self._drift.close() if step >= self._due else None
        if closed is None:
            return {}
        metrics, changed = closed
        self._closes.append(step)
        self._due = step + self._config.symptom_every
        self._check_collapse(step, [change for change in changed if change.is_collapse])
        for change in changed:
            if change.is_collapse:
                continue
            self._alarms.check(
                f"symptom/{change.name}",
                when=True,
                step=step,
                value=change.value,
                threshold=change.threshold,
                message=f"{change.message}: {change.value:.3g}, where the first windows allow {change.threshold:.3g}",
                evidence=f"{change.evolution}, two windows in a row",
            )
        return metrics

    def _check_collapse(self, step: int, collapsed: Sequence[Change]) -> None:
        first = collapsed[0] if collapsed else None
        self._alarms.check(
            "collapse",
            when=first is not None,
            step=step,
            value=first.value if first else 0.0,
            threshold=first.threshold if first else 0.0,
            message=f"the policy has collapsed: {'; '.join(change.message for change in collapsed)}",
            evidence=", ".join(change.evolution for change in collapsed)
            + f" from the first {self._config.reference_windows} windows to this one, and also in the one before",
            action=self._config.action,
            sound_until=self._closes[0],
        )
