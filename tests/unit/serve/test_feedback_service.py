"""The feedback service over HTTP: what it answers, whom, how much at once, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_apps import records, web
from serve_apps import service as services
from serve_apps.config import ServiceFile
from serve_apps.http import build_app
from serve_apps.keys import Keys, new_key
from solon.client import AsyncFeedbackClient, Compared, Scored, ServiceError, Turn
from solon.errors import InputError
from tests.unit.serve.stub_judges import CONSTITUTION, StubJudge, service

HI = [Turn(role="user", content="hi")]
ASKED = {"messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def running(
    folder: Path, text: str = "", **headers: str
) -> AsyncIterator[tuple[httpx.AsyncClient, list[StubJudge]]]:
    found, judges = service(folder, text)
    await found.start()
    transport = httpx.ASGITransport(app=build_app(found, starts=False), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
            yield http, judges
    finally:
        await found.close()


async def test_the_page_of_the_interface_needs_no_other_host_and_its_examples_are_answered(tmp_path: Path):
    async with running(tmp_path) as (http, _):
        page = (await http.get("/docs")).text
        parts = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
        assert parts
        assert all(part.startswith("/") for part in parts), parts
        assert [(await http.get(part)).status_code for part in parts] == [200] * len(parts)
        described = (await http.get("/openapi.json")).json()
        for name in ("Scores", "Preferences"):
            (example,) = described["components"]["schemas"][f"{name}Request"]["examples"]
            reply = await http.post(f"/v1/{name.lower()}", json=example)
            assert reply.status_code == 200, reply.text


async def test_scores_and_preferences_come_with_every_verdict_and_their_cost(tmp_path: Path):
    async with running(tmp_path) as (http, judges):
        client = AsyncFeedbackClient("http://s", http=http)
        reply = await client.scores(
            [Scored(messages=HI, answer="1234567", tags=["kind"]), Scored(messages=HI, answer="broken")]
        )
        whole, none = reply.results
        assert [one.principle for one in whole.verdicts] == ["long", "kind"]
        assert whole.reward is not None
        assert whole.reward > 0
        assert whole.verdicts[0].probability == pytest.approx(1 / (1 + math.exp(-2)))
        assert (none.reward, none.verdicts[0].status, none.verdicts[0].margin) == (None, "low_mass", None)
        assert (reply.usage.labels, reply.usage.questions, reply.usage.prompt_tokens) == (3, 2, 20)
        pairs = [("longer", "short"), ("a", "abc"), ("same", "same"), ("broken", "x")]
        reply = await client.preferences([Compared(messages=HI, first=a, second=b) for a, b in pairs], judge="other")
        assert [one.preferred for one in reply.results] == ["first", "second", "tie", None]
        assert [one.margin for one in reply.results] == [1.0, -2.0, 0.0, None]
        assert [judge.name for judge in judges if judge.items] == ["default", "other"]
        cards = await client.judges()
        assert [(card.id, card.ready, card.constitution) for card in cards] == [
            ("default", True, "mine"), ("other", True, "mine"),
        ]  # fmt: skip
        assert (await http.get("/v1/models/other")).json()["id"] == "other"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 422, "the body is not JSON"),
        (b"\xff\xfe", 422, "the body is not JSON"),
        (json.dumps({"items": []}), 422, "items: List should have at least 1"),
        (json.dumps({"items": [{**ASKED, "answer": 3}]}), 422, "items.0.answer: Input should be a valid string"),
        (json.dumps({"items": [{**ASKED, "answer": "a", "temperature": 1}]}), 422, "items.0.temperature"),
        (json.dumps({"items": [{**ASKED, "answer": "\ud800"}]}), 422, "items.0.answer"),
        (json.dumps({"items": [{"messages": [], "answer": "a"}]}), 422, "items.0.messages"),
        (json.dumps({"items": [{"messages": [{"role": "tool", "content": "x"}], "answer": "a"}]}), 422, "role"),
        (
            json.dumps({"items": [{"messages": [{"role": "assistant", "content": "x"}], "answer": "a"}]}),
            422,
            "expected to end with a user turn",
        ),
        (json.dumps({"items": [{**ASKED, "answer": "a"}], "judge": "nobody"}), 404, "expected one of default, other"),
        (json.dumps({"items": [{**ASKED, "answer": "a"}] * 5}), 422, "got 5 items, expected at most 4"),
        (json.dumps({"items": [{**ASKED, "answer": "a" * 40_000}]}), 413, "larger than 0.01 MiB"),
    ],
)
async def test_a_bad_request_gets_one_clear_message_in_the_usual_form(
    tmp_path: Path, body: bytes | str, status: int, words: str
):
    limits = "max_items = 4\nmax_body_mib = 0.01\n"
    async with running(tmp_path, limits) as (http, judges):
        reply = await http.post("/v1/scores", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == status, reply.text
        error = reply.json()["error"]
        assert words in error["message"]
        assert error["type"]
        assert "Traceback" not in reply.text
        assert not any(judge.items for judge in judges)


async def test_unknown_paths_and_methods_answer_in_the_same_form(tmp_path: Path):
    async with running(tmp_path) as (http, _):
        assert (await http.get("/v1/nothing")).json()["error"]["type"] == "not_found_error"
        assert (await http.get("/v1/scores")).status_code == 405
        assert (await http.get("/v1/models/none")).json()["error"]["code"] == "unknown_model"


async def test_a_body_that_hides_its_length_is_bounded_too(tmp_path: Path):
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    async with running(tmp_path, "max_body_mib = 0.01\n") as (http, _):
        reply = await http.post("/v1/scores", content=parts())
        assert reply.status_code == 413


async def test_only_callers_with_a_key_are_answered_and_health_needs_none(tmp_path: Path):
    key = new_key("team", tmp_path / "keys.txt")
    assert key not in (tmp_path / "keys.txt").read_text()
    body = {"items": [{**ASKED, "answer": "a"}]}
    async with running(tmp_path, 'keys = "keys.txt"\nrecords = "labels"\n') as (http, _):
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": key}, {"authorization": f"Basic {key}"}):
            reply = await http.post("/v1/scores", json=body, headers=headers)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert (await http.get("/v1/models", headers=headers)).status_code == 401
        assert (await http.get("/health")).json()["status"] == "ok"
        assert (await http.post("/v1/scores", json=body, headers={"authorization": f"Bearer {key}"})).is_success
    (file,) = (tmp_path / "labels").iterdir()
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (row["caller"], row["principle_id"], row["judge_id"]) == ("team", "long", "stub")
    assert "hi" not in row.values()


async def test_what_cannot_wait_is_refused_at_once_with_a_time(tmp_path: Path):
    body = {"items": [{**ASKED, "answer": "a"}] * 3}
    async with running(tmp_path, "max_items = 4\nmax_waiting = 4\n") as (http, judges):
        judges[0].gate.clear()
        first = asyncio.create_task(http.post("/v1/scores", json=body))
        await asyncio.sleep(0.05)
        refused = await http.post("/v1/scores", json=body)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["type"] == "rate_limit_error"
        judges[0].gate.set()
        assert (await first).is_success
        assert (await http.post("/v1/scores", json=body)).is_success


async def test_a_judge_whose_engine_is_lost_is_started_again_and_callers_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(services, "FIRST_WAIT_S", 0.01)
    body = {"items": [{**ASKED, "answer": "a"}]}
    async with running(tmp_path) as (http, judges):
        judges[0].lost = True
        reply = await http.post("/v1/scores", json=body)
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
        assert "engine ended" not in reply.text
        assert (await http.post("/v1/scores", json={**body, "judge": "other"})).is_success
        for _ in range(100):
            if (await http.get("/health")).is_success:
                break
            await asyncio.sleep(0.01)
        assert judges[0].closed
        assert (await http.post("/v1/scores", json=body)).is_success
        assert [judge.name for judge in judges] == ["default", "other", "default"]


async def test_an_unexpected_error_shows_nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def fails(*_: Any) -> Any:
        raise KeyError("/secret/path")

    monkeypatch.setattr(StubJudge, "judge", fails)
    async with running(tmp_path) as (http, _):
        reply = await http.post("/v1/scores", json={"items": [{**ASKED, "answer": "a"}]})
        assert reply.status_code == 500
        assert "secret" not in reply.text


async def test_the_client_waits_as_long_as_it_is_told_and_gives_up_on_what_cannot_succeed(tmp_path: Path):
    asked: list[int] = []

    def answer(_: httpx.Request) -> httpx.Response:
        asked.append(1)
        problem = {"error": {"message": "no", "type": "t", "param": None, "code": "busy"}}
        return httpx.Response(429 if len(asked) < 3 else 422, headers={"retry-after": "0"}, json=problem)

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    with pytest.raises(ServiceError, match="no") as caught:
        await AsyncFeedbackClient("http://s/v1/", http=http).scores([Scored(messages=HI, answer="a")])
    assert (caught.value.status, caught.value.code, len(asked)) == (422, "busy", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('host = "0.0.0.0"\n', "without keys anybody could ask"),
        ("max_itms = 3\n", "did you mean `max_items`"),
        ("max_items = 100\nmax_waiting = 10\n", "expected at most max_waiting"),
        ('[judges."a b"]\nmodel = "m"\nconstitution = "c"\n', "got the name 'a b'"),
        ("port = 99999\n", "port"),
    ],
)
def test_a_settings_file_with_a_mistake_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "mine.yaml").write_text(CONSTITUTION)
    judges = '[judges.default]\nmodel = "a"\nconstitution = "mine.yaml"\n'
    (tmp_path / "service.toml").write_text(judges + text if text.startswith("[") else text + judges)
    with pytest.raises(InputError, match=message):
        ServiceFile.load(tmp_path / "service.toml")


def test_keys_are_kept_as_digests_that_no_other_account_reads(tmp_path: Path):
    path = tmp_path / "keys.txt"
    first, second = new_key("a", path), new_key("b", path)
    keys = Keys.load(path)
    assert [keys.caller(key) for key in (first, second, first[:-1], "")] == ["a", "b", None, None]
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="have 'a' already"):
        new_key("a", path)
    with pytest.raises(InputError, match="got the name"):
        new_key("a b", path)
    path.chmod(0o644)
    with pytest.raises(InputError, match="can be read by every account; run: chmod 600"):
        Keys.load(path)
    path.chmod(0o600)
    path.write_text("a plain-key\n")
    with pytest.raises(InputError, match="line 1 is no"):
        Keys.load(path)
    with pytest.raises(InputError, match="make one with"):
        Keys.load(tmp_path / "none")


async def test_what_a_full_disk_cuts_is_removed_again_and_the_caller_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    body = {"items": [{**ASKED, "answer": "a"}]}
    async with running(tmp_path, 'records = "labels"\n') as (http, _):
        assert (await http.post("/v1/scores", json=body)).is_success
        (file,) = (tmp_path / "labels").iterdir()
        before, real = file.read_bytes(), os.write

        room = [7]

        def full(descriptor: int, content: bytes) -> int:
            if Path(f"/proc/self/fd/{descriptor}").readlink() != file:
                return real(descriptor, content)
            if room:
                return real(descriptor, content[: room.pop()])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(records.os, "write", full)
        reply = await http.post("/v1/scores", json=body)
        assert reply.status_code == 503
        assert "could not be recorded" in reply.json()["error"]["message"]
        assert file.read_bytes() == before
        health = await http.get("/health")
        assert (health.status_code, health.json()["judges"]["records"]) == (503, "records cannot be written")
        monkeypatch.undo()
        assert (await http.post("/v1/scores", json=body)).is_success
        assert (await http.get("/health")).is_success
        shutil.rmtree(tmp_path / "labels")
        assert (await http.post("/v1/scores", json=body)).is_success


async def test_a_client_that_stops_in_the_middle_of_its_request_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def parts() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)
        yield b"}"

    monkeypatch.setattr(web, "BODY_TIMEOUT_S", 0.05)
    async with running(tmp_path) as (http, _):
        reply = await http.post("/v1/scores", content=parts())
        assert reply.status_code == 408


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"records .* cannot be written"):
        service(tmp_path, f'records = "{tmp_path / "file" / "labels"}"\n')


def test_a_key_is_added_on_a_line_of_its_own_whatever_the_file_ends_with(tmp_path: Path):
    path = tmp_path / "keys.txt"
    first = new_key("a", path)
    path.write_text(path.read_text().rstrip("\n"))
    second = new_key("b", path)
    assert [Keys.load(path).caller(key) for key in (first, second)] == ["a", "b"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        new_key("c", path)


async def test_a_body_without_a_right_key_is_not_read(tmp_path: Path):
    new_key("ada", tmp_path / "keys.txt")
    found, _ = service(tmp_path, 'keys = "keys.txt"\n')
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer wrong"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/scores",
        "headers": headers,
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("s", 80),
        "root_path": "",
        "raw_path": b"/v1/scores",
    }
    await build_app(found, starts=False)(scope, receive, send)
    assert sent[0]["status"] == 401
