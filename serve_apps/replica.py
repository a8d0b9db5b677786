"""A service as a replica of Ray Serve: healthy while its engines are ready, so that Serve replaces one whose engine
cannot be started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from serve_apps.config import ServiceBase, as_mapping
from serve_apps.web import Service
from solon.errors import InputError, RunFailedError

HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5, 10
LONGEST_ANSWER_S = 600
LONGEST_DOWN_S = 300.0
"""After which an engine that is not ready makes its replica unhealthy."""
ARGUMENTS = ("settings", "replicas", "cpus", "gpus")

Make = Callable[[Mapping[str, Any]], Service]
"""A service of settings as plain values."""


class Replica:
    """One replica: the service, behind the application that `ingress` makes for it."""

    current: ClassVar[Service | None] = None
    """Of this process, which hosts one replica. Serve builds the application before its context knows the replica."""

    async def __init__(self, make: Make, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self.service = make(settings)
        self._since: dict[str, float] = {}
        await self.service.start()
        Replica.current = self.service

    async def check_health(self) -> None:
        """Raises RunFailedError for an engine that has not been ready for long: the service starts it again by itself,
        and Serve replaces the whole replica, with the engines that are well."""
        now, troubles = time.monotonic(), self.service.troubles()
        self._since = {name: self._since.get(name, now) for name, trouble in troubles.items() if trouble != "ready"}
        for name, since in self._since.items():
            if now - since > LONGEST_DOWN_S:
                raise RunFailedError(f"{name} is not ready: {troubles[name]}")

    async def __del__(self) -> None:
        await self.service.close()


def application(
    name: str, args: Mapping[str, str], load: type[ServiceBase], make: Make, build: Callable[[Any], FastAPI]
) -> Application:
    """args: `settings`, the path of the service file; `replicas`, 1 by default; `cpus` and `gpus` of each.

    Raises InputError.
    """
    if unknown := sorted(set(args) - set(ARGUMENTS)):
        raise InputError(f"got the argument {unknown[0]!r}, expected one of {', '.join(ARGUMENTS)}")
    if "settings" not in args:
        raise InputError("settings is missing, expected the path of a service file: settings=service.toml")
    file = load.load(args["settings"])

    def built() -> FastAPI:
        assert Replica.current is not None
        return build(Replica.current)

    deployment = serve.deployment(
        serve.ingress(built)(Replica),
        name=name,
        num_replicas=int(args.get("replicas", 1)),
        ray_actor_options={"num_cpus": float(args.get("cpus", 1)), "num_gpus": float(args.get("gpus", 0))},
        max_ongoing_requests=1024,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=LONGEST_ANSWER_S,
    )
    return deployment.bind(make, as_mapping(file))
