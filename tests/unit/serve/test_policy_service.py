"""The policy service: which version answers whom, how it is replaced, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from serve_apps import policy_service as services
from serve_apps.policy_config import PolicyFile
from serve_apps.policy_http import build_policy_app
from serve_apps.policy_service import PolicyService, arm_of
from serve_apps.versions import newest
from solon.errors import InputError
from tests.unit.serve.stub_servers import StubServers

RELOAD = '[policies.policy]\nmodel = "run"\n'
BESIDE = RELOAD + 'swap = "beside"\n'
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "LOOK_S", 0.01)
    monkeypatch.setattr(services, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(services, "HEALTH_PERIOD_S", 0.0)


def checkpoint(run: Path, step: int, *, noise: float = 0.0, is_broken: bool = False) -> Path:
    """A checkpoint with a policy that no engine could load."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "model.safetensors").write_text(f"weights {step}")
    if is_broken:
        (folder / "policy" / "broken").write_text("")
    (folder / "canaries.json").write_text(json.dumps({"token_ids": [[1]], "logprobs": [[0.0]], "noise": noise}))
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"step": step, "config_hash": "x", "files": files}))
    return folder


@asynccontextmanager
async def running(folder: Path, text: str = "") -> AsyncIterator[tuple[httpx.AsyncClient, StubServers, PolicyService]]:
    if not (folder / "run").exists():
        checkpoint(folder / "run", 1)
    (folder / "policy.toml").write_text(text or RELOAD)
    servers = StubServers()
    service = PolicyService(PolicyFile.load(folder / "policy.toml"), servers.open)
    await service.start()
    transport = httpx.ASGITransport(app=build_policy_app(service, starts=False), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
            yield http, servers, service
    finally:
        await service.close()


async def ask(http: httpx.AsyncClient, model: str = "policy", **more: object) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={"model": model, "messages": HI, **more})


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)


async def version_is(service: PolicyService, label: str) -> None:
    await until(lambda: getattr(service.policies[0].version, "label", "") == label)


async def test_an_answer_names_its_version_and_unknown_names_and_versions_are_refused(tmp_path: Path):
    async with running(tmp_path) as (http, servers, _):
        reply = await ask(http, "policy@step-000001", top_k=3)
        assert reply.json()["choices"][0]["message"]["content"] == "policy step-000001"
        assert reply.headers["x-solon-version"] == "step-000001"
        assert reply.headers["x-solon-digest"] == newest(str(tmp_path / "run")).digest
        assert servers.made[0].asked == [{"model": "policy", "messages": HI, "top_k": 3}]
        for name, words in (("none", "expected one of policy"), ("policy@step-000009", "expected step-000001")):
            refused = await ask(http, name)
            assert refused.status_code == 404
            assert words in refused.json()["error"]["message"]
        (card,) = (await http.get("/v1/models")).json()["data"]
        assert (card["id"], card["version"], card["ready"]) == ("policy", "step-000001", True)


async def test_the_examples_of_the_interface_are_answered(tmp_path: Path):
    async with running(tmp_path) as (http, _, _):
        described = (await http.get("/openapi.json")).json()
        for path in ("/v1/chat/completions", "/v1/completions"):
            body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            (example,) = body["examples"].values()
            reply = await http.post(path, json=example["value"])
            assert reply.status_code == 200, reply.text


async def test_a_newer_checkpoint_replaces_the_version_and_the_old_one_ends_after_its_last_answer(tmp_path: Path):
    async with running(tmp_path, BESIDE) as (http, servers, service):
        async with service.policies[0].bound() as bound:
            checkpoint(tmp_path / "run", 2)
            await version_is(service, "step-000002")
            assert (await ask(http)).headers["x-solon-version"] == "step-000002"
            assert bound.version.label == "step-000001"
            assert not servers.made[0].closed
        await until(lambda: servers.made[0].closed)
        assert (await http.get("/health")).json()["versions"] == {"policy": "step-000002"}


@pytest.mark.parametrize("text", [RELOAD, BESIDE])
@pytest.mark.parametrize("fault", ["broken", "other log-probs", "other bytes"])
async def test_a_version_that_cannot_be_proven_changes_nothing(tmp_path: Path, fault: str, text: str):
    async with running(tmp_path, text) as (http, _, service):
        found = checkpoint(
            tmp_path / "run", 2, is_broken=fault == "broken", noise=-1.0 if fault == "other log-probs" else 0.0
        )
        if fault == "other bytes":
            (found / "policy" / "model.safetensors").write_text("changed")
        await asyncio.sleep(0.2)
        assert (await ask(http)).headers["x-solon-version"] == "step-000001"
        checkpoint(tmp_path / "run", 3)
        await version_is(service, "step-000003")


async def test_while_a_version_is_loaded_requests_wait_and_none_is_refused(tmp_path: Path):
    async with running(tmp_path) as (http, servers, service):
        policy = service.policies[0]
        async with policy.bound():
            checkpoint(tmp_path / "run", 2)
            await until(lambda: not policy._gate.is_set())
            waiting = asyncio.create_task(ask(http))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        reply = await waiting
        assert reply.headers["x-solon-version"] == "step-000002"
        assert reply.json()["system_fingerprint"] == "policy@step-000002"
        assert len(servers.made) == 1
        assert not servers.made[0].closed


async def test_an_answer_that_takes_too_long_gets_a_second_server_instead_of_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(services, "LONGEST_PAUSE_S", 0.05)
    async with running(tmp_path) as (http, servers, service), service.policies[0].bound():
        checkpoint(tmp_path / "run", 2)
        await version_is(service, "step-000002")
        assert len(servers.made) == 2
        assert (await ask(http)).headers["x-solon-version"] == "step-000002"


async def test_a_server_that_can_load_no_version_is_started_again_with_the_proven_one(tmp_path: Path):
    async with running(tmp_path) as (http, servers, service):
        servers.made[0].loads_nothing = True
        checkpoint(tmp_path / "run", 2)
        await until(lambda: servers.made[0].closed and service.troubles() == {"policy": "ready"})
        assert (await ask(http)).headers["x-solon-version"] in ("step-000001", "step-000002")


async def test_a_lost_server_is_answered_with_503_and_started_again(tmp_path: Path):
    async with running(tmp_path) as (http, servers, service):
        servers.made[0].lost = "killed"
        reply = await ask(http)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "5"
        await until(lambda: len(servers.made) == 2 and service.troubles() == {"policy": "ready"})
        assert (await ask(http)).status_code == 200


async def test_a_stream_that_breaks_off_ends_with_an_error(tmp_path: Path):
    async with running(tmp_path) as (http, _, _):
        whole = await ask(http, stream=True)
        assert whole.text.endswith("data: [DONE]\n\n")
        assert whole.headers["x-solon-version"] == "step-000001"
        cut = await ask(http, stream=True, user="cut")
        last = json.loads(cut.text.strip().rpartition("data: ")[2])
        assert last["error"]["code"] == "unavailable"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 422, "not JSON"),
        (b"[1]", 422, "valid dictionary"),
        (b"{}", 422, "model is missing"),
        (b'{"model": 3}', 422, "model is missing"),
        (b'{"model": "policy", "n": 100000}', 422, "n is above 128"),
        (b'{"model": "policy", "stream": 3}', 422, "stream is neither"),
        (b'{"model": "policy", "x": NaN}', 422, "not finite"),
        (b'{"model": "policy", "user": 3}', 422, "user is not a text"),
    ],
)
async def test_a_malformed_request_is_refused_in_the_form_of_openai(
    tmp_path: Path, body: bytes, status: int, words: str
):
    async with running(tmp_path) as (http, _, _):
        reply = await http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == status
        assert words in reply.json()["error"]["message"]


async def test_what_the_model_refuses_keeps_its_status_and_what_fails_is_503(tmp_path: Path):
    async with running(tmp_path) as (http, servers, _):
        servers.made[0].status = 400
        refused = await ask(http)
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "the model refuses")
        servers.made[0].status = 500
        assert (await ask(http)).status_code == 503


async def test_a_comparison_divides_its_users_and_each_keeps_an_arm(tmp_path: Path):
    text = (
        '[policies.old]\nmodel = "run"\n[policies.new]\nmodel = "run"\n[compare.trial]\narms = { old = 3, new = 1 }\n'
    )
    async with running(tmp_path, text) as (http, _, _):
        first = await ask(http, "trial", user="u-1")
        again = await ask(http, "trial", user="u-1")
        assert first.headers["x-solon-policy"] == again.headers["x-solon-policy"]
    found = Counter(arm_of(f"u-{number}", "trial", {"old": 3, "new": 1}) for number in range(4000))
    assert 0.72 < found["old"] / 4000 < 0.78


def test_settings_with_a_mistake_are_refused(tmp_path: Path):
    for text, words in (
        ('[policies."a b"]\nmodel = "m"\n', "got the name 'a b'"),
        ('[policies.a]\nmodel = "m"\n[compare.a]\narms = { a = 1, b = 1 }\n', "a policy and a comparison"),
        ('[policies.a]\nmodel = "m"\n[compare.t]\narms = { a = 1, b = 1 }\n', "has the arm 'b'"),
        ('host = "0.0.0.0"\n[policies.a]\nmodel = "m"\n', "without keys anybody could ask"),
        ('[policies.a]\nmodel = "m"\nswop = "beside"\n', "swop"),
    ):
        (tmp_path / "policy.toml").write_text(text)
        with pytest.raises(InputError, match=words):
            PolicyFile.load(tmp_path / "policy.toml")


def test_a_run_without_a_usable_checkpoint_and_a_compressed_model_without_certificate_are_refused(tmp_path: Path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="has no checkpoint yet"):
        newest(str(tmp_path / "run"))
    damaged = checkpoint(tmp_path / "run", 4)
    (damaged / "policy" / "model.safetensors").write_text("changed")
    with pytest.raises(InputError, match="no usable checkpoint"):
        newest(str(tmp_path / "run"))


@pytest.mark.parametrize("text", [RELOAD, BESIDE])
async def test_after_a_refused_version_a_lost_server_is_replaced_by_the_version_that_was_proven(
    tmp_path: Path, text: str
):
    async with running(tmp_path, text) as (http, servers, service):
        checkpoint(tmp_path / "run", 2, is_broken=True)
        await until(lambda: service.policies[0]._refused == "step-000002")
        await asyncio.sleep(0.1)
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000001")
        await until(lambda: service.policies[0]._server is not None)
        current = next(one for one in reversed(servers.made) if one.version.label == "step-000001")
        current.lost = "killed"
        await until(lambda: current.closed and service.troubles() == {"policy": "ready"})
        assert (await ask(http)).headers["x-solon-version"] == "step-000001"


async def test_a_server_that_stops_answering_is_replaced(tmp_path: Path):
    async with running(tmp_path) as (_, servers, service):
        servers.made[0].hangs = True
        await until(lambda: len(servers.made) == 2 and service.troubles() == {"policy": "ready"})
        assert servers.made[0].closed


async def test_no_third_server_starts_while_a_replaced_one_still_answers(tmp_path: Path):
    async with running(tmp_path, BESIDE) as (_, servers, service), service.policies[0].bound():
        checkpoint(tmp_path / "run", 2)
        await version_is(service, "step-000002")
        checkpoint(tmp_path / "run", 3)
        await asyncio.sleep(0.1)
        assert len(servers.made) == 2


async def test_a_damaged_newest_checkpoint_is_not_read_again_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    monkeypatch.setattr(services, "newest", lambda model: calls.append(model) or newest(model))
    async with running(tmp_path):
        damaged = checkpoint(tmp_path / "run", 2)
        (damaged / "policy" / "model.safetensors").write_text("changed")
        await asyncio.sleep(0.2)
        assert len(calls) <= 3
