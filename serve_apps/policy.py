"""The policy service on Ray Serve: `serve run serve_apps.policy:app settings=policy.toml`

One replica hosts all policies of the settings file. Replicas follow a run one by one, so two versions answer meanwhile;
the headers of each answer name its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray.serve import Application

from serve_apps.policy_config import PolicyFile
from serve_apps.policy_http import build_policy_app
from serve_apps.policy_service import PolicyService
from serve_apps.replica import application


def app(args: Mapping[str, str]) -> Application:
    """`settings`: path of the service file. `replicas`: number of replicas, 1 by default. `cpus`, `gpus`: of each.

    Raises InputError.
    """
    return application("policy", args, PolicyFile, make, build)


def make(settings: Mapping[str, Any]) -> PolicyService:
    """The service of a replica."""
    return PolicyService(PolicyFile.model_validate(settings))


def build(service: PolicyService) -> FastAPI:
    """Its application. The policies are started by the replica."""
    return build_policy_app(service, starts=False)
