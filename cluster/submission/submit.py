"""Submits a request, stops a job, and finds the jobs of a run."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import requests

from cluster.ray_session.session import ALLOW_OPEN
from cluster.submission.connection import MARKET, JobServer, UnreachableError, labels_for_driver
from cluster.submission.request import Request
from solon.errors import InputError, RunFailedError
from solon.files.plain_text import excerpt
from solon.host.submitted_job import SUBMISSION

LOOK_S = 0.5
SLACK_S = 30.0
"""Beyond the grace: Ray kills the job, and writes that down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job that the cluster has accepted."""

    id: str
    attempt: int
    driver: str
    """Where its driver runs, in words."""


def submit(server: JobServer, request: Request, folder: Path) -> Submitted:
    """Uploads the folder and starts the job. Raises InputError when the run has a job already, RunFailedError when the
    cluster refuses."""
    attempt = next_attempt(request.name, server.jobs())
    job = f"solon-{request.name}-{attempt}"
    labels = labels_for_driver(server.nodes())
    variables = {**request.environment(), SUBMISSION: job}
    if os.environ.get(ALLOW_OPEN) == "1":
        variables[ALLOW_OPEN] = "1"
    try:
        server.submit_job(
            entrypoint=request.entrypoint,
            submission_id=job,
            runtime_env={"working_dir": str(folder), "env_vars": variables},
            metadata=request.metadata(attempt),
            entrypoint_label_selector=labels or None,
        )
    except UnreachableError as error:
        if not _arrived(server, job):
            raise RunFailedError(
                f"{error}; {job} may have started: look with `solon jobs list`, then submit again"
            ) from None
    except (RuntimeError, requests.RequestException, ray.exceptions.RayError) as error:
        if "already exists" in str(error):
            raise InputError(
                f"another submission of {request.name} was quicker; follow it: solon jobs logs {job} -f"
            ) from None
        raise RunFailedError(f"the cluster refuses the job: {excerpt(_last(str(error)), longest=400)}") from None
    where = f"on a machine with {MARKET} other than spot" if labels else "on the head"
    return Submitted(id=job, attempt=attempt, driver=where)


def next_attempt(name: str, jobs: Sequence[Any]) -> int:
    """The number of the next job of a run. Raises InputError while one of its jobs runs: two would write one run."""
    pattern, last = re.compile(rf"solon-{re.escape(name)}-(\d+)"), 0
    for job in jobs:
        found = pattern.fullmatch(job.submission_id or "")
        if found is None:
            continue
        if not job.status.is_terminal():
            raise InputError(
                f"the run {name} has the job {job.submission_id}, which is {job.status.value.lower()}, expected none; "
                f"follow it (solon jobs logs {job.submission_id} -f), stop it (solon jobs stop {job.submission_id}), "
                "or choose another --name"
            )
        last = max(last, int(found[1]))
    return last + 1


def known_job(server: JobServer, job: str) -> Any:
    """The cluster's record of a job. Raises InputError."""
    info = server.job(job)
    if info is None:
        raise InputError(f"the cluster at {server.url} knows no job {job}; see with `solon jobs list` which there are")
    return info


def stop(server: JobServer, job: str, *, wait: bool, say: Callable[[str], None]) -> Any:
    """Asks a job to end, and waits until it has. Returns the cluster's record of it. Raises InputError for a job
    that is not known, RunFailedError when it does not end."""
    info = known_job(server, job)
    if info.status.is_terminal():
        say(f"{job} had ended before: {info.status.value.lower()}")
        return info
    grace_s = int((info.metadata or {}).get("solon_stop_wait_s", "3"))
    is_run = "solon_run" in (info.metadata or {})
    work = "to finish its step and write a checkpoint" if is_run else "to end; it is not a run of Solon's"
    server.stop_job(job)
    if not wait:
        say(f"{job} was asked to stop; it may take {grace_s} s {work}")
        return info
    say(f"{job} was asked to stop; it has {grace_s} s {work}")
    began = time.monotonic()
    while not (info := known_job(server, job)).status.is_terminal():
        if time.monotonic() - began > grace_s + SLACK_S:
            raise RunFailedError(
                f"{job} has not ended {grace_s + SLACK_S:.0f} s after it was asked; look at `ray status`"
            )
        time.sleep(LOOK_S)
    took = time.monotonic() - began
    killed = took >= grace_s
    how = ": it was killed" if killed else ""
    if killed and is_run:
        how += ", and continues from its previous checkpoint; next time give it more --grace"
    say(f"{job} ended {took:.0f} s after it was asked{how}")
    return info


def _arrived(server: JobServer, job: str) -> bool:
    """Whether a job exists although the answer to its submission was lost."""
    try:
        return server.job(job) is not None
    except RunFailedError:
        return False


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), text)
