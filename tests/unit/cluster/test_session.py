"""A joined cluster must require a token; the token of a new cluster is readable only by its owner."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.ray_session import session
from cluster.ray_session.session import ask, private_token
from solon.errors import InputError, RunFailedError

TOKEN = "c0ffee" * 8


class Gcs(grpc.GenericRpcHandler):
    """Answers the first request to a cluster as Ray does: with a token, or without."""

    def __init__(self, token: str) -> None:
        self._token = token

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method != "/ray.rpc.NodeInfoGcsService/GetClusterId":
            return None
        given = dict(details.invocation_metadata).get("authorization")

        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if self._token and given != f"Bearer {self._token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b"\n\x02ok"

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def serve() -> Iterator[Callable[[str], str]]:
    """`address = serve(token)`: a cluster that asks for the token, or for none."""
    servers = []

    def start(token: str) -> str:
        server = grpc.server(ThreadPoolExecutor(1), handlers=(Gcs(token),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home for the test, without any setting for tokens."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS", session.ALLOW_OPEN):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # Ray's settings are the whole process's; other tests run without a token.
    monkeypatch.setattr(session, "use_environment", lambda: None)


def refusal(address: str) -> str:
    with pytest.raises(InputError) as caught:
        session._check_before_joining(address)
    return str(caught.value)


def write_token(path: Path, token: str = TOKEN) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(token + "\n")
    return path


def test_the_answer_of_a_cluster_shows_whether_it_requires_a_token(serve: Any):
    assert ask(serve("")) == "answers"
    assert ask(serve(TOKEN)) == "refuses"
    assert ask(serve(TOKEN), token="bad") == "refuses"
    assert ask(serve(TOKEN), token=TOKEN) == "answers"


def test_an_open_cluster_is_refused_unless_it_is_allowed(serve: Any, monkeypatch: pytest.MonkeyPatch):
    address = serve("")
    message = refusal(address)
    assert f"the Ray cluster at {address} accepts requests without a token" in message
    assert "set RAY_AUTH_MODE=token on all its nodes" in message
    monkeypatch.setenv("SOLON_ALLOW_OPEN_CLUSTER", "yes")
    assert "SOLON_ALLOW_OPEN_CLUSTER=1" in refusal(address)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # variables of the submitting shell do not reach the job
    assert refusal(address).endswith("submit with `-- env SOLON_ALLOW_OPEN_CLUSTER=1` in front of the command")
    monkeypatch.setenv("SOLON_ALLOW_OPEN_CLUSTER", "1")
    session._check_before_joining(address)


def test_a_cluster_that_takes_our_token_is_joined_in_token_mode(
    serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    write_token(tmp_path / ".ray" / "auth_token")
    session._check_before_joining(serve(TOKEN))
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(write_token(tmp_path / "other", "another")))
    session._check_before_joining(serve("another"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a third")
    session._check_before_joining(serve("a third"))


def test_a_token_that_is_missing_wrong_or_switched_off_is_one_message_without_the_token(
    serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    address = serve(TOKEN)
    assert f"asks for a token, but there is none in {tmp_path / '.ray' / 'auth_token'}; set" in refusal(address)
    write_token(tmp_path / ".ray" / "auth_token", "wrong-secret")
    message = refusal(address)
    assert f"refuses the token in {tmp_path / '.ray' / 'auth_token'}; set RAY_AUTH_MODE=token" in message
    assert "wrong-secret" not in message
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong-secret")
    message = refusal(address)
    assert "refuses the token in the environment variable RAY_AUTH_TOKEN" in message
    assert "wrong-secret" not in message
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "asks for a token, but RAY_AUTH_MODE is disabled" in refusal(address)


def test_an_address_without_a_cluster_or_of_wrong_form_gives_one_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "ANSWER_S", 0.2)
    assert "no Ray cluster answers at RAY_ADDRESS = 127.0.0.1:9 within" in refusal("127.0.0.1:9")
    assert "RAY_ADDRESS is 'ray://head:10001', expected host:port" in refusal("ray://head:10001")
    for odd in ("nonsense", "a:b", "head:1 --", "head:" + "1" * 5000):
        assert "expected host:port, or auto" in refusal(odd)


def test_the_token_of_a_new_cluster_is_readable_by_its_owner_alone(tmp_path: Path):
    os.umask(before := os.umask(0))
    os.umask(0)
    try:
        path = private_token()
    finally:
        os.umask(before)
    assert path == tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(path.read_text()) == 64
    assert private_token().read_text() == path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["auth_token"]


def test_a_token_that_others_could_read_is_made_private(tmp_path: Path):
    path = write_token(tmp_path / ".ray" / "auth_token")
    path.chmod(0o644)
    assert stat.S_IMODE(private_token().stat().st_mode) == 0o600
    assert path.read_text().strip() == TOKEN


def test_a_missing_token_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"RAY_AUTH_TOKEN_PATH names .*none, which does not exist"):
        private_token()
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "folder"))
    with pytest.raises(InputError, match=r"cannot be read or made: .*; set RAY_AUTH_TOKEN_PATH to a file of yours"):
        private_token()


@pytest.mark.parametrize(("mode", "expected"), [(None, "token"), ("token", "token"), ("disabled", "disabled")])
def test_a_new_cluster_asks_for_a_token_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str | None, expected: str
):
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    seen: dict[str, Any] = {}

    def init(**options: Any) -> Any:
        seen.update(options, mode=os.environ["RAY_AUTH_MODE"], private=(tmp_path / ".ray" / "auth_token").exists())
        raise ConnectionError("far enough")

    monkeypatch.setattr(session.ray, "init", init)
    with pytest.raises(RunFailedError, match="Ray did not start: far enough; its logs are in"), session.cluster():
        pass
    assert (seen["mode"], seen["private"]) == (expected, expected == "token")
    assert (seen["address"], seen["dashboard_host"]) == ("local", "127.0.0.1")
