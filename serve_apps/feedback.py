"""The feedback service on Ray Serve: `serve run serve_apps.feedback:app settings=feedback.toml`

One replica hosts all judges of the settings file; `replicas` of them share the load. Every replica is healthy while its
judges are ready, so that Serve replaces one whose engine cannot be started again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ray import serve
from ray.serve import Application

from serve_apps.config import ServiceFile, as_mapping
from serve_apps.http import build_app
from serve_apps.service import FeedbackService
from solon.errors import InputError, RunFailedError

HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5, 10
LONGEST_ANSWER_S = 600


class FeedbackReplica:
    """One replica: the judges, behind the application that `build` makes for it."""

    current: ClassVar[FeedbackService | None] = None
    """Of this process, which hosts one replica. Serve builds the application before its context knows the replica."""

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self.service = FeedbackService(ServiceFile.model_validate(settings))
        await self.service.start()
        FeedbackReplica.current = self.service

    async def check_health(self) -> None:
        """Raises RunFailedError while a judge is not ready."""
        for name, trouble in self.service.troubles().items():
            if trouble != "ready":
                raise RunFailedError(f"the judge {name} is not ready: {trouble}")

    async def __del__(self) -> None:
        await self.service.close()


def build() -> Any:
    """The application of this replica. The judges are started by the replica."""
    assert FeedbackReplica.current is not None
    return build_app(FeedbackReplica.current, starts=False)


def app(args: Mapping[str, str]) -> Application:
    """`settings`: path of the service file. `replicas`: number of replicas, 1 by default. `cpus`, `gpus`: of each.

    Raises InputError.
    """
    if unknown := sorted(set(args) - {"settings", "replicas", "cpus", "gpus"}):
        raise InputError(f"got the argument {unknown[0]!r}, expected settings, replicas, cpus or gpus")
    if "settings" not in args:
        raise InputError("settings is missing, expected the path of a service file: settings=feedback.toml")
    file = ServiceFile.load(args["settings"])
    deployment = serve.deployment(
        serve.ingress(build)(FeedbackReplica),
        name="feedback",
        num_replicas=int(args.get("replicas", 1)),
        ray_actor_options={"num_cpus": float(args.get("cpus", 1)), "num_gpus": float(args.get("gpus", 0))},
        max_ongoing_requests=1024,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=LONGEST_ANSWER_S,
    )
    return deployment.bind(as_mapping(file))
