"""The alarm of a watch."""

from __future__ import annotations

from dataclasses import dataclass

from solon.feedback.watching.watch_config import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A finding that needs attention. Alarm(kind="gold_falls", step=120, value=-0.01, threshold=0.0, message="...",
    action="stop")"""

    kind: str
    step: int
    value: float
    threshold: float
    message: str
    """The cause in one sentence."""
    evidence: str = ""
    """The numbers behind it, with their windows."""
    remedy: str = ""
    """What to do about it."""
    action: Action = "warn"
    sound_until: int | None = None
    """Last step at which the policy, or the judge, was known to be sound; None: see gold."""

    def line(self) -> str:
        """The whole alarm in one line, for people."""
        return "; ".join(part for part in (f"{self.kind} at step {self.step}: {self.message}", self.remedy) if part)
