"""A cluster's job server over HTTP: found, asked for its versions, and every answer within a time limit.

Ray's own client waits without limits, and takes RAY_API_SERVER_ADDRESS in preference to its argument.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobSubmissionClient

from cluster.ray_session.session import ALLOW_OPEN, own_token, use_environment
from solon.errors import InputError, RunFailedError, short
from solon.files.plain_text import excerpt

ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Environment variable of Ray's own client."""
HEADERS = "RAY_JOB_HEADERS"
"""The same: headers for a proxy before the cluster, as a JSON object."""
CONNECT_S, ANSWER_S = 15.0, 120.0
"""Seconds for a connection, and between two parts of an answer. An upload of hundreds of MiB is answered late."""
BEAT_S = 20.0
"""Seconds between two heartbeats of a log that is followed."""
MARKET = "ray.io/market-type"
"""Label that a machine's provider gives: `spot` or `on-demand`."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXAMPLE = "http://127.0.0.1:8265"


class UnreachableError(RunFailedError):
    """The job server does not answer. The job may still run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the cluster."""

    labels: Mapping[str, str]
    is_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Of the cluster's head."""

    ray: str
    python: str
    """Empty: it does not say."""


def job_address(given: str) -> str:
    """The address of the job server as a URL; empty: that of the environment. Raises InputError."""
    text, where = given, "--address"
    if not text:
        text, where = os.environ.get(ADDRESS, ""), ADDRESS
    if not text:
        raise InputError(f"got no cluster, expected its dashboard's address: --address {EXAMPLE}, or set {ADDRESS}")
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_fine = False
    if not is_fine or parts.query or parts.username is not None or parts.path.strip("/"):
        raise InputError(f"{where} is {short(text)}, expected the address of the cluster's dashboard, as in {EXAMPLE}")
    return url.rstrip("/")


LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
"""Of Ray's client, which would write on the terminal of a command."""


class JobServer(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, with limits on waiting, and without exceptions that name no remedy."""

    def __init__(self, url: str, *, headers: Mapping[str, str]) -> None:
        os.environ[ADDRESS] = url  # Ray prefers it to the argument
        for name in LOGGERS:  # they set their own level when they are imported
            logging.getLogger(name).setLevel(logging.WARNING)
        super().__init__(url, headers=dict(headers))
        self.url = url

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            answer: requests.Response = super()._do_request(method, endpoint, timeout=(CONNECT_S, ANSWER_S), **options)
            return answer
        except requests.RequestException as error:
            raise UnreachableError(f"the job server at {self.url} does not answer: {_why(error)}") from None
        except ray.exceptions.AuthenticationError:
            raise RunFailedError(f"the job server at {self.url} no longer accepts the token; renew it here") from None

    def job(self, name: str) -> JobDetails | None:
        """A job by its submission id; None: the cluster does not know it."""
        answer = self._do_request("GET", f"/api/jobs/{name}")
        return None if answer.status_code == 404 else JobDetails(**self._json(answer))

    def jobs(self) -> Sequence[JobDetails]:
        """All submitted jobs, the oldest first."""
        found = [JobDetails(**one) for one in self._json(self._do_request("GET", "/api/jobs/"))]
        return sorted((one for one in found if one.submission_id), key=lambda one: one.start_time or 0)

    def log(self, name: str) -> str:
        """What a job has written so far."""
        return str(self._json(self._do_request("GET", f"/api/jobs/{name}/logs")).get("logs") or "")

    def versions(self) -> Versions:
        """Of Ray and Python on the head."""
        found = self._json(self._do_request("GET", "/api/version"))
        metadata = self._do_request("GET", "/api/v0/cluster_metadata")
        known = metadata.json().get("data", {}) if metadata.status_code == 200 else {}
        return Versions(ray=str(found.get("ray_version", "")), python=str(known.get("pythonVersion") or ""))

    def nodes(self) -> Sequence[Node]:
        """Nodes that are up; empty where the dashboard does not say."""
        answer = self._do_request("GET", "/api/v0/nodes?detail=1&limit=10000")
        rows = answer.json().get("data", {}).get("result", {}).get("result", []) if answer.status_code == 200 else []
        return [
            Node(labels=row.get("labels") or {}, is_head=bool(row.get("is_head_node")))
            for row in rows
            if row.get("state") == "ALIVE"
        ]

    async def tail(self, name: str) -> AsyncIterator[str]:
        """The log from its begin, and what is added, until the job or the connection ends. Raises UnreachableError."""
        place = f"{self._address}/api/jobs/{name}/logs/tail"
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, trust_env=True) as session,
                session.ws_connect(place, heartbeat=BEAT_S, max_msg_size=0, ssl=self._ssl_context or True) as socket,
            ):
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        yield message.data
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"the job server at {self.url} does not answer: {_why(error)}") from None

    def _json(self, answer: requests.Response) -> Any:
        if answer.status_code != 200:
            raise RunFailedError(
                f"the job server at {self.url} answers with {answer.status_code}: {excerpt(_last_line(answer.text))}"
            )
        return answer.json()


def connect(given: str) -> JobServer:
    """The job server of a cluster that answers, requires a token and accepts ours. Raises InputError."""
    url, headers = job_address(given), _headers()
    status = _status(url, headers)
    if status == 200 and os.environ.get(ALLOW_OPEN) != "1" and not headers:
        raise InputError(
            f"the cluster at {url} accepts jobs without a token, so anyone who can reach it can run code; expected one "
            f"that requires a token; set RAY_AUTH_MODE=token on all its nodes and here, or, if no one else can reach "
            f"it, set {ALLOW_OPEN}=1"
        )
    if status in (401, 403):
        _check_token(url, headers)
    elif status != 200:
        raise InputError(f"{url} answers with status {status}, expected a Ray dashboard; correct the address")
    use_environment()
    return JobServer(url, headers=headers)


def remarks(server: JobServer) -> list[str]:
    """Warnings about the connection."""
    parts = urlsplit(server.url)
    if parts.scheme == "https" or parts.hostname in LOOPBACK or os.environ.get("RAY_AUTH_MODE") != "token":
        return []
    return [
        f"the token and the folder travel to {parts.hostname} as plain text; use a tunnel (ssh -L 8265:127.0.0.1:8265 "
        f"{parts.hostname}; --address {EXAMPLE}) or https"
    ]


def check_versions(versions: Versions) -> list[str]:
    """Warnings. Raises InputError where Ray or Python of client and cluster differ by more than a patch."""
    here = Versions(ray=ray.__version__, python=platform.python_version())
    pairs = (("Ray", versions.ray, here.ray), ("Python", versions.python, here.python))
    for what, there, ours in pairs:
        if there and _minor(there) != _minor(ours):
            raise InputError(
                f"the cluster has {what} {there}, expected {_minor(ours)} as here ({ours}): its driver and workers "
                f"would not understand each other's data; submit from an environment with {what} {_minor(there)}, or "
                "change the cluster's image"
            )
    return [
        f"the cluster has {what} {there}, this client {ours}" for what, there, ours in pairs if there not in ("", ours)
    ]


def labels_for_driver(nodes: Sequence[Node]) -> dict[str, str]:
    """The label selector of a job's driver: not on a machine that the provider may take back. Empty: Ray's own choice,
    the head, whose loss ends every job anyway."""
    head = next((node for node in nodes if node.is_head), None)
    on_spot = head is not None and head.labels.get(MARKET) == "spot"
    return {MARKET: "!spot"} if on_spot else {}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _check_token(url: str, headers: Mapping[str, str]) -> None:
    how = "set RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        mode = os.environ["RAY_AUTH_MODE"]
        raise InputError(f"the cluster at {url} asks for a token, but RAY_AUTH_MODE is {mode}; unset it, and {how}")
    token, where = own_token()
    if not token:
        raise InputError(f"the cluster at {url} asks for a token, but there is none in {where}; {how}")
    if (status := _status(url, {**headers, "Authorization": f"Bearer {token}"})) != 200:
        raise InputError(f"the cluster at {url} refuses the token in {where} ({status}); {how}")


def _status(url: str, headers: Mapping[str, str]) -> int:
    """The status of a Ray dashboard's answer. Raises InputError where no dashboard answers."""
    try:
        answer = requests.get(f"{url}/api/version", headers=dict(headers), timeout=CONNECT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise InputError(
            f"no Ray dashboard answers at {url}: {_why(error)}; expected the address of the head's dashboard; start "
            "the cluster, open a tunnel (ssh -L 8265:127.0.0.1:8265 HEAD, or kubectl port-forward), or "
            "correct --address"
        ) from None
    if answer.status_code == 200:
        try:
            is_ray = "ray_version" in answer.json()
        except ValueError:
            is_ray = False
        if not is_ray:
            raise InputError(f"{url} is not a Ray dashboard: it answers, but names no version; correct --address")
    return int(answer.status_code)


def _headers() -> dict[str, str]:
    text = os.environ.get(HEADERS, "")
    if not text:
        return {}
    try:
        found = json.loads(text)
        assert isinstance(found, dict)
        assert all(isinstance(value, str) for value in found.values())
    except (ValueError, AssertionError):
        raise InputError(f"{HEADERS} cannot be used, expected a JSON object of texts; correct it or unset it") from None
    return found


def _why(error: BaseException) -> str:
    """A library's error in few words: requests nests it in the text of several others."""
    if isinstance(error, requests.Timeout | TimeoutError):
        return "it takes too long"
    said = str(error)
    for words in ("Connection refused", "Name or service not known", "No route to host", "certificate verify failed"):
        if words in said:
            return words[0].lower() + words[1:]
    return excerpt(said, longest=160) or type(error).__name__


def _last_line(text: str) -> str:
    """Of a traceback that Ray answers with."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing")
