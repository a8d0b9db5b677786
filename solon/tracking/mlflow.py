"""MLflow: a store at any of its URIs, such as `sqlite:////path/mlflow.db` or a server's address."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST = 500
"""Characters of a parameter."""
AT_ONCE = 100
"""Parameters of a call."""
STATUS = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowSink:
    """Raises ImportError without the package `mlflow`."""

    def __init__(self, uri: str, run: Path, experiment: str = "solon") -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._param = Metric, Param
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self._run = self._client.create_run(number, run_name=run.name).info.run_id
        self._status = "KILLED"

    def settings(self, config: Mapping[str, Any]) -> None:
        """The run's settings, as parameters."""
        params = [self._param(key, str(value)[:LONGEST]) for key, value in config.items()]
        for start in range(0, len(params), AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + AT_ONCE])

    def step(self, step: int, values: Mapping[str, float], *, time_s: float) -> None:
        """A point of every curve."""
        moment = round(time_s * 1000)
        self._client.log_batch(self._run, [self._metric(name, value, moment, step) for name, value in values.items()])

    def back_to(self, step: int) -> None:
        """MLflow keeps both values of a step, with their times."""

    def ended(self, status: str, values: Mapping[str, float]) -> None:
        """The figures of the summary."""
        self._status = STATUS[status]
        self._client.log_batch(self._run, [self._metric(name, value, 0, 0) for name, value in values.items()])

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run, status=self._status)
