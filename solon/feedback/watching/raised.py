"""The alarms of a watch: raised ones, and those not reported yet."""

from __future__ import annotations

from collections.abc import Iterable

from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.remedies import remedy_of
from solon.feedback.watching.watch_config import Action


class RaisedAlarms:
    """An alarm is reported once while its condition holds, and again only after the condition has cleared."""

    def __init__(self) -> None:
        self._raised: set[str] = set()
        self._pending: list[Alarm] = []

    @property
    def kinds(self) -> list[str]:
        """Kinds that are raised now."""
        return sorted(self._raised)

    @property
    def reported(self) -> frozenset[str]:
        """Kinds that are raised and were returned by `take`."""
        return frozenset(self._raised) - {alarm.kind for alarm in self._pending}

    def restore(self, kinds: Iterable[str]) -> None:
        """Continue with these kinds raised and reported."""
        self._raised = set(kinds)

    def take(self) -> list[Alarm]:
        """Alarms raised since the last call."""
        alarms, self._pending = self._pending, []
        return alarms

    def clear(self, kind: str) -> None:
        """The condition of this kind no longer holds."""
        self._raised.discard(kind)

    def check(
        self,
        kind: str,
        *,
        when: bool,
        step: int,
        value: float,
        threshold: float,
        message: str,
        evidence: str = "",
        action: Action = "warn",
        sound_until: int | None = None,
    ) -> None:
        """Raise the alarm when the condition holds and it is not raised already; clear it when it does not."""
        if not when:
            self.clear(kind)
        elif kind not in self._raised:
            self._raised.add(kind)
            self._pending.append(
                Alarm(
                    kind=kind,
                    step=step,
                    value=value,
                    threshold=threshold,
                    message=message,
                    evidence=evidence,
                    remedy=remedy_of(kind),
                    action=action,
                    sound_until=sound_until,
                )
            )
