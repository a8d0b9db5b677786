"""What a tracker must be able to do. A new one is a new module with a class of this form, named in `sinks.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Sink(Protocol):
    """Receives the metrics of one run."""

    def settings(self, config: Mapping[str, Any]) -> None:
        """The run's settings, flat, by dotted key; called once, first."""
        ...

    def step(self, step: int, values: Mapping[str, float], *, time_s: float) -> None:
        """Values of a step, by metric. Steps come in order."""
        ...

    def back_to(self, step: int) -> None:
        """The run was resumed: values from this step on are sent again."""
        ...

    def ended(self, status: str, values: Mapping[str, float]) -> None:
        """The run has ended: `completed`, `stopped` or `failed`, with the figures of its summary."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...
