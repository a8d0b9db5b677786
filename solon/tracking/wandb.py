"""Weights & Biases. Offline with WANDB_MODE=offline; `wandb sync` sends it later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandbSink:
    """Raises ImportError without the package `wandb`. folder: its files, outside of the run."""

    def __init__(self, project: str, run: Path, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(console="off", x_disable_stats=True)
        self._run = wandb.init(project=project, name=run.name, dir=str(folder), config={}, settings=settings)
        # The step is a value: W&B's own counter would drop the steps that a resumed run repeats.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def settings(self, config: Mapping[str, Any]) -> None:
        """The run's settings."""
        self._run.config.update(dict(config), allow_val_change=True)

    def step(self, step: int, values: Mapping[str, float], *, time_s: float) -> None:
        """A point of every curve."""
        self._run.log({"step": step, "time": time_s, **values})

    def back_to(self, step: int) -> None:
        """W&B keeps both values of a step."""

    def ended(self, status: str, values: Mapping[str, float]) -> None:
        """The figures of the summary."""
        self._run.summary.update({"status": status, **values})

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()
