"""Critiques, revisions and answers of the feedback service's writers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from serve_apps.config import ServiceFile
from serve_apps.http import build_app
from serve_apps.service import FeedbackService
from solon.client import Answered, AsyncFeedbackClient, Revised, Turn
from tests.unit.serve.stub_servers import StubServers

CONSTITUTION = """
schema: solon.constitution/v1
id: mine
version: "1"
principles:
  - {id: kind, pointwise_question: "Kind?", critique_request: "What is unkind?", revision_request: "Make it kind."}
  - {id: plain, pointwise_question: "Plain?", revision_request: "Make it plain."}
"""
ITEM = {"messages": [{"role": "user", "content": "hi"}], "answer": "go away"}


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, StubServers]]:
    (folder / "mine.yaml").write_text(CONSTITUTION)
    (folder / "model").mkdir()
    (folder / "service.toml").write_text('[writers.writer]\nmodel = "model"\nconstitution = "mine.yaml"\n')
    servers = StubServers()
    service = FeedbackService(ServiceFile.load(folder / "service.toml"), open_=servers.open)
    await service.start()
    transport = httpx.ASGITransport(app=build_app(service, starts=False), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
            yield http, servers
    finally:
        await service.close()


async def test_a_critique_asks_by_the_principles_request_after_the_answer(tmp_path: Path):
    async with running(tmp_path) as (http, servers):
        reply = (await http.post("/v1/critiques", json={"items": [ITEM]})).json()
        (critique,) = reply["results"]
        assert (critique["principle"], critique["is_cut"]) == ("kind", False)
        assert critique["critique"].startswith("writer weights-")
        said = [turn["content"] for turn in servers.made[0].asked[0]["messages"]]
        assert said == ["hi", "go away", "What is unkind?"]
        assert reply["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


async def test_a_revision_follows_a_critique_unless_one_is_given_or_none_is_wanted(tmp_path: Path):
    async with running(tmp_path) as (http, servers):
        items = [
            ITEM | {"principle": "kind"},
            ITEM | {"principle": "kind", "critique": "It is rude."},
            ITEM | {"principle": "plain", "critique": ""},
        ]
        reply = (await http.post("/v1/revisions", json={"items": items})).json()
        assert [one["principle"] for one in reply["results"]] == ["kind", "kind", "plain"]
        assert [bool(one["critique"]) for one in reply["results"]] == [True, True, False]
        asked = sorted([turn["content"] for turn in one["messages"]] for one in servers.made[0].asked)
        assert ["hi", "go away", "Make it plain."] in asked
        assert ["hi", "go away", "What is unkind?", "It is rude.", "Make it kind."] in asked
        assert len(asked) == 4


async def test_results_are_streamed_as_they_are_made_and_end_with_what_they_cost(tmp_path: Path):
    async with running(tmp_path) as (http, servers):
        asked = {"items": [ITEM | {"answer": f"go away {number}"} for number in range(3)], "stream": True}
        reply = await http.post("/v1/critiques", json=asked)
        assert reply.headers["content-type"].startswith("text/event-stream")
        *events, last = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        assert last == "[DONE]"
        *results, end = [json.loads(one) for one in events]
        assert sorted(one["index"] for one in results) == [0, 1, 2]
        assert all(one["result"]["principle"] == "kind" for one in results)
        assert end["usage"] == {"prompt_tokens": 9, "completion_tokens": 6}
        revised = await http.post("/v1/revisions", json=asked | {"items": [ITEM | {"critique": ""}]})
        assert '"revision": "' in revised.text


async def test_a_stream_that_cannot_begin_has_a_status_and_one_that_fails_ends_with_an_error_event(tmp_path: Path):
    async with running(tmp_path) as (http, servers):
        refused = await http.post("/v1/critiques", json={"items": [ITEM | {"principle": "no"}], "stream": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "items.0.principle")
        servers.made[0].status = 400
        late = await http.post("/v1/critiques", json={"items": [ITEM], "stream": True})
        assert (late.status_code, late.json()["error"]["param"]) == (422, "items.0")


async def test_the_examples_of_the_interface_are_answered(tmp_path: Path):
    async with running(tmp_path) as (http, _):
        described = (await http.get("/openapi.json")).json()
        for name in ("Critiques", "Revisions"):
            (example,) = described["components"]["schemas"][f"{name}Request"]["examples"]
            reply = await http.post(f"/v1/{name.lower()}", json=example)
            assert reply.status_code == 200, reply.text


async def test_both_clients_ask_for_critiques_and_revisions(tmp_path: Path):
    async with running(tmp_path) as (http, _), AsyncFeedbackClient("http://s", http=http) as client:
        turns = [Turn(role="user", content="hi")]
        found = await client.critiques([Answered(messages=turns, answer="go away")])
        assert found.results[0].principle == "kind"
        made = await client.revisions([Revised(messages=turns, answer="go away", critique="rude")])
        assert made.results[0].revision


async def test_what_a_writer_cannot_do_is_refused_with_the_item(tmp_path: Path):
    async with running(tmp_path) as (http, servers):
        for path, body, status, param in (
            ("critiques", {"items": [ITEM | {"principle": "plain"}]}, 422, "items.0.principle"),
            ("revisions", {"items": [ITEM, ITEM | {"principle": "none"}]}, 422, "items.1.principle"),
            ("revisions", {"items": [ITEM], "writer": "none"}, 404, "writer"),
            ("scores", {"items": [ITEM]}, 404, "judge"),
        ):
            reply = await http.post(f"/v1/{path}", json=body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
        assert servers.made[0].asked == []


async def test_a_writer_chats_through_openais_interface_and_is_listed(tmp_path: Path):
    async with running(tmp_path) as (http, _):
        reply = await http.post("/v1/chat/completions", json={"model": "writer", "messages": ITEM["messages"]})
        assert reply.json()["choices"][0]["message"]["content"].startswith("writer ")
        (card,) = (await http.get("/v1/models")).json()["data"]
        assert (card["id"], card["writes"], card["ready"]) == ("writer", True, True)
        assert (await http.get("/health")).json()["judges"] == {"writer": "ready"}
