"""The feedback service on Ray Serve: `serve run serve_apps.feedback:app settings=feedback.toml`

One replica hosts all judges of the settings file; `replicas` of them share the load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray.serve import Application

from serve_apps.config import ServiceFile
from serve_apps.http import build_app
from serve_apps.replica import application
from serve_apps.service import FeedbackService


def app(args: Mapping[str, str]) -> Application:
    """args: see `serve_apps.replica.application`. Raises InputError."""
    return application("feedback", args, ServiceFile, make, build)


def make(settings: Mapping[str, Any]) -> FeedbackService:
    """The service of a replica."""
    return FeedbackService(ServiceFile.model_validate(settings))


def build(service: FeedbackService) -> FastAPI:
    """Its application. The judges are started by the replica."""
    return build_app(service, starts=False)
