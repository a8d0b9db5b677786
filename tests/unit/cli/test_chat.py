"""`solon chat`: what policies are sent, what is shown of their answers, and broken streams."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from solon.cli import chat
from solon.cli.chat import ChatRequest, policies_of, run_chat
from solon.client.chat import ChatClient
from solon.client.feedback import ServiceError
from solon.client.wire import Turn
from solon.errors import InputError, RunFailedError

HI = [Turn(role="user", content="hi")]
Answer = Callable[[httpx.Request], httpx.Response]


def client(answer: Answer) -> ChatClient:
    return ChatClient("http://s/v1", transport=httpx.MockTransport(answer))


def events(*lines: str) -> Answer:
    return lambda _: httpx.Response(200, text="".join(f"data: {line}\n\n" for line in lines))


def delta(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]})


def echo(asked: list[dict[str, Any]]) -> Answer:
    """Answers with the model's name and a terminal escape."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body)
        text = f"{body['model']}\x1b[31m {len(body['messages'])}"
        if body.get("stream"):
            return events(delta(text), "[DONE]")(request)
        return httpx.Response(200, json={"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    return answer


def test_a_stream_gives_its_pieces_and_one_that_breaks_off_raises():
    assert "".join(client(events(delta("a"), delta("b"), "[DONE]")).stream("m", HI)) == "ab"
    for broken, words in (
        (events(delta("a")), "broke off"),
        (events(delta("a"), json.dumps({"error": {"message": "was lost"}})), "was lost"),
        (lambda _: httpx.Response(503, json={"error": {"message": "not ready", "type": "t"}}), "not ready"),
        (lambda _: httpx.Response(502, text="<html>"), "502"),
    ):
        with pytest.raises(ServiceError, match=words):
            list(client(broken).stream("m", HI))


def test_every_policy_has_its_own_conversation_and_a_new_one_begins_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(chat, "ChatClient", lambda *_, **__: client(echo(asked)))
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n/new\nthree\n/quit\nfour\n"))
    run_chat(ChatRequest(target="a,b", url="http://s", system="Be kind."), as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["one", "two", "three"]
    assert lines[1]["answers"] == {"a": "a\x1b[31m 4", "b": "b\x1b[31m 4"}
    second = next(body for body in asked if body["model"] == "b" and len(body["messages"]) == 4)
    assert [turn["content"] for turn in second["messages"]] == ["Be kind.", "one", "b\x1b[31m 2", "two"]


@pytest.mark.parametrize("target", ["a", "a,b"])
def test_terminal_controls_of_an_answer_are_shown_and_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str
):
    monkeypatch.setattr(chat, "ChatClient", lambda *_, **__: client(echo([])))
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    run_chat(ChatRequest(target=target, url="http://s"), as_json=False)
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown
    assert "\\x1b[31m" in shown


def test_a_service_that_is_gone_ends_the_command_with_its_cause(monkeypatch: pytest.MonkeyPatch):
    def gone(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(chat, "ChatClient", lambda *_, **__: client(gone))
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    with pytest.raises(RunFailedError, match="cannot be reached"):
        run_chat(ChatRequest(target="a", url="http://s"), as_json=False)


def test_a_run_without_a_checkpoint_is_refused_and_a_model_stands_for_itself(tmp_path: Path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="no checkpoint yet"):
        policies_of(str(tmp_path / "run"), after_only=False)
    assert policies_of("org/model", after_only=False) == [("policy", "org/model")]
