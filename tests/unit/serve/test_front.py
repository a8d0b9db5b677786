"""What a client sees of a replica that is lost while it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import RayError

from serve_apps.policy import app as policy_app
from serve_apps.replica import LOST, Front
from solon.errors import InputError

PLAIN, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"


class Replicas:
    """A handle whose answers are given: each is a list of messages, with an error at its end or not."""

    def __init__(self, *answers: Sequence[Any]) -> None:
        self._answers = list(answers)
        self.asked = 0
        self.ask = self

    def options(self, *, stream: bool) -> Replicas:
        assert stream
        return self

    async def remote(self, scope: Any, body: bytes) -> AsyncIterator[Any]:
        assert (scope["path"], body) == ("/v1/scores", b"asked")
        self.asked += 1
        for message in self._answers.pop(0):
            if isinstance(message, Exception):
                raise message
            yield message


def start(kind: bytes) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


def part(text: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text, "more_body": more}


async def answer_of(replicas: Replicas) -> httpx.Response:
    front = Front(replicas, {"records": None})
    transport = httpx.ASGITransport(app=front.entrance)
    async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
        return await client.post("/v1/scores", content=b"asked")


WHOLE = [start(PLAIN), part(b"{}", more=False)]


@pytest.mark.parametrize("before", [0, 1, 2])
async def test_an_answer_that_was_lost_part_way_is_asked_for_again(before: int):
    halves = [start(PLAIN), part(b"{", more=True)]
    replicas = Replicas([*halves[:before], RayError("killed")], WHOLE)
    reply = await answer_of(replicas)
    assert (reply.status_code, reply.content, replicas.asked) == (200, b"{}", 2)


async def test_an_answer_lost_twice_is_503_with_retry_after():
    replicas = Replicas(*[[start(PLAIN), RayError("killed")]] * 2)
    reply = await answer_of(replicas)
    assert reply.status_code == 503
    assert reply.json()["error"]["message"] == LOST
    assert int(reply.headers["retry-after"]) > 0


async def test_a_stream_is_asked_for_again_until_its_first_event_and_then_ends_with_an_error_event():
    lost_before = [start(EVENTS), RayError("killed")]
    lost_after = [start(EVENTS), part(b"data: 1\n\n", more=True), RayError("killed")]
    replicas = Replicas(lost_before, lost_after)
    reply = await answer_of(replicas)
    assert (reply.status_code, replicas.asked) == (200, 2)
    first, last = reply.text.strip().split("\n\n")
    assert first == "data: 1"
    assert LOST in last


async def test_events_are_passed_on_in_order():
    events = [part(b"data: %d\n\n" % step, more=step < 3) for step in range(4)]
    reply = await answer_of(Replicas([start(EVENTS), *events]))
    assert reply.text.split() == ["data:", "0", "data:", "1", "data:", "2", "data:", "3"]


def deployed(folder: Path, **args: str) -> Any:
    """The deployment of the engines."""
    (folder / "policy.toml").write_text('[policies.policy]\nmodel = "model"\n')
    front = policy_app({"settings": str(folder / "policy.toml"), **args})
    return front._bound_deployment.init_args[0]._bound_deployment


def test_the_number_of_replicas_is_fixed_or_follows_the_requests(tmp_path: Path):
    assert deployed(tmp_path, replicas="2").num_replicas == 2
    scaled = deployed(tmp_path, most_replicas="3", busy_requests="4")._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 3, 4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"replicas": "many"}, "replicas is 'many', expected a number from 1"),
        ({"replicas": "3", "most_replicas": "2"}, "most_replicas is '2', expected a number from 3"),
        ({"cpus": "-1"}, "cpus is '-1'"),
        ({"replica": "1"}, "got the argument 'replica'"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(tmp_path: Path, args: dict[str, str], words: str):
    with pytest.raises(InputError, match=words):
        deployed(tmp_path, **args)
