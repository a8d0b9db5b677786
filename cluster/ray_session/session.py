"""Joins or starts a Ray cluster, always with a token. The only module that calls `ray.init`.

Anyone who can reach a Ray cluster without a token can run any program on it. So a cluster that starts here requires
one, whatever Ray's default is; a cluster that is joined is first probed without a token.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import grpc
import ray
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import Config  # type: ignore[attr-defined]

from cluster.ray_session.orphans import ended_with_driver
from cluster.ray_session.own_cluster import init_options, private_start
from cluster.ray_session.session_folder import SessionFolder, session_folder, start_failure
from cluster.ray_session.worker_path import job_config
from cluster.signals import sigterm_as_ctrl_c
from solon.errors import InputError, short
from solon.host.own_code import protect
from solon.host.submitted_job import is_submitted_job

ALLOW_OPEN = "SOLON_ALLOW_OPEN_CLUSTER"
"""Environment variable: 1 joins a cluster that requires no token."""
ANSWER_S = 15.0
"""How long a cluster may take to answer; a new one takes some seconds."""
_PROBE = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first request of every client; it is empty."""

_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):\d{1,5}")

Reply = Literal["answers", "refuses", "silent"]


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """Facts about the cluster for the user."""

    address: str
    dashboard_url: str
    resources: dict[str, float]
    token_path: str
    """File with the token for the dashboard; empty when the cluster has none."""
    files: str = ""
    """Folder of a cluster that was started here; its logs are kept when the run fails."""
    notes: tuple[str, ...] = ()
    """A note for the user about the place of the cluster's files."""


@contextlib.contextmanager
def cluster(*, dashboard: bool = True) -> Iterator[ClusterInfo]:
    """The cluster of `RAY_ADDRESS` (set by `ray job submit`), or a local one that ends with the block.

    Raises InputError when there is no cluster, when it refuses the token, when it requires none, and when one of
    Solon's packages is shadowed.
    """
    protect()
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        _check_before_joining(address)
        with _connected({"address": address}) as info:
            yield info
        return
    token_path = _require_token()
    with session_folder() as folder, ended_with_driver() as started:
        options = init_options(folder, dashboard=dashboard)
        with _connected(options, starting=folder, started=started) as info:
            notes = (folder.note,) if folder.note else ()
            yield replace(info, token_path=token_path, files=str(folder.path), notes=notes)


@contextlib.contextmanager
def _connected(
    options: dict[str, Any], *, starting: SessionFolder | None = None, started: Callable[[int], None] = lambda _: None
) -> Iterator[ClusterInfo]:
    """`ray.init` with these options; `starting`: the folder of a cluster that starts with it, `started`: is told the id
    of each of its processes."""
    with sigterm_as_ctrl_c() as take_again:
        try:
            with private_start(starting, started) if starting else contextlib.nullcontext():
                context = ray.init(log_to_driver=False, logging_level="ERROR", job_config=job_config(), **options)
        except Exception as error:
            if starting is None:
                raise
            with contextlib.suppress(Exception):  # the part that did start
                ray.shutdown()
            raise start_failure(starting, error) from error
        try:
            take_again()
            yield ClusterInfo(
                address=str(context.address_info.get("gcs_address") or "local"),
                dashboard_url=str(context.dashboard_url or ""),
                resources=ray.cluster_resources(),
                token_path="",
            )
        finally:
            ray.shutdown(wait_for_processes=starting is not None)


def answers_probe() -> Callable[[], bool] | None:
    """Whether the control service of a joined cluster still answers; None for a cluster that was started here, whose
    process is watched directly, and for one that uses TLS."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local") or os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return None
    place, (token, _) = _place(address), own_token()
    return lambda: ask(place, token=token) != "silent"


# -- a cluster of our own ------------------------------------------------------------------------------------------


def _require_token() -> str:
    """The next cluster to start requires a token, unless the environment says otherwise. Returns the token's file."""
    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        return ""
    use_environment()
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ""
    return str(private_token())


def private_token() -> Path:
    """The token's file, created when missing, at all times readable by its owner only.

    Ray would create one that everybody on the machine can read. Raises InputError when it cannot be read or created.
    """
    path = _token_path()
    try:
        if not path.exists():
            if os.environ.get("RAY_AUTH_TOKEN_PATH"):
                raise InputError(f"RAY_AUTH_TOKEN_PATH names {path}, which does not exist; correct it or unset it")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create(path, secrets.token_hex(32))
        if path.stat().st_mode & 0o077 and path.stat().st_uid == os.getuid():
            path.chmod(0o600)
        path.read_bytes()
    except OSError as error:
        raise InputError(
            f"Ray's token {path} cannot be read or made: {error.strerror}; set RAY_AUTH_TOKEN_PATH to a file of yours "
            "with a long random text, or RAY_AUTH_TOKEN to such a text, or change the permissions"
        ) from None
    return path


def _create(path: Path, token: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
        with contextlib.suppress(FileExistsError):  # another process was first: both use its file
            os.link(scratch, path)
    finally:
        scratch.unlink()


def _token_path() -> Path:
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path)
    try:
        return Path.home() / ".ray" / "auth_token"
    except RuntimeError:
        raise InputError(
            "this account has no home directory for Ray's token; set RAY_AUTH_TOKEN_PATH to a file of yours with a "
            "long random text, or RAY_AUTH_TOKEN to such a text"
        ) from None


def use_environment() -> None:
    """Ray reads its settings once, at import; later changes must be passed on explicitly."""
    Config.initialize("")


# -- an existing cluster -------------------------------------------------------------------------------------------


def _check_before_joining(address: str) -> None:
    """Raises InputError unless the cluster answers, requires a token and accepts ours."""
    place = _place(address)
    if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return  # it accepts only holders of its certificates
    match ask(place):
        case "silent":
            raise InputError(
                f"no Ray cluster answers at RAY_ADDRESS = {address} within {ANSWER_S:.0f} s; start it, correct the "
                "address, or unset RAY_ADDRESS to run on this machine"
            )
        case "answers" if os.environ.get(ALLOW_OPEN) != "1":
            raise InputError(
                f"the Ray cluster at {address} accepts requests without a token, so anyone who can reach it can run "
                "code; expected one that requires a token; set RAY_AUTH_MODE=token on all its nodes and here, or, if "
                f"no one else can reach it, {_how_to_allow()}"
            )
        case "refuses":
            _check_token(address, place)


def _how_to_allow() -> str:
    if is_submitted_job():  # a variable of the shell that submits does not reach the job
        return f"submit with `-- env {ALLOW_OPEN}=1` in front of the command"
    return f"set {ALLOW_OPEN}=1"


def _check_token(address: str, place: str) -> None:
    how = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        mode = os.environ["RAY_AUTH_MODE"]
        raise InputError(f"the Ray cluster at {address} asks for a token, but RAY_AUTH_MODE is {mode}; {how}")
    use_environment()
    if os.environ.get("RAY_ENABLE_K8S_TOKEN_AUTH", "").lower() in ("1", "true"):
        return  # the token is the service account's, and Ray finds it
    token, where = own_token()
    if not token:
        raise InputError(f"the Ray cluster at {address} asks for a token, but there is none in {where}; {how}")
    if ask(place, token=token) != "answers":
        raise InputError(f"the Ray cluster at {address} refuses the token in {where}; {how}")


def own_token() -> tuple[str, str]:
    """(token, its source); the token is empty when there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "the environment variable RAY_AUTH_TOKEN"
    path = _token_path()
    try:
        return path.read_text(encoding="utf-8").strip(), str(path)
    except (OSError, UnicodeDecodeError):
        return "", str(path)


def _place(address: str) -> str:
    """`host:port` of a cluster's address. Raises InputError."""
    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS is {short(address)}, expected host:port: addresses of Ray Client are not supported; "
            f"submit the "
            "run with `ray job submit`"
        )
    if address != "auto":
        if not _HOST_AND_PORT.fullmatch(address):
            raise InputError(f"RAY_ADDRESS is {short(address)}, expected host:port, or auto")
        return address
    try:
        place = canonicalize_bootstrap_address(address)
    except ConnectionError as error:
        raise InputError(f"RAY_ADDRESS is auto: {error}") from None
    if place is None:
        raise InputError("RAY_ADDRESS is auto, but no cluster runs on this machine; start one, or unset it")
    return str(place)


def ask(place: str, *, token: str = "") -> Reply:
    """Whether the cluster answers a request with this token, or with none."""
    headers = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(place, options=(("grpc.enable_http_proxy", 0),)) as channel:
        call = channel.unary_unary(_PROBE)
        try:
            call(b"", metadata=headers, timeout=ANSWER_S, wait_for_ready=True)
        except grpc.RpcError as error:
            refused = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return "refuses" if refused else "silent"
    return "answers"
