"""A small client of chat completions, for `solon chat` and scripts. Programs take OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from solon.client.feedback import ServiceError
from solon.client.wire import Failure, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer and the version that wrote it."""

    text: str
    version: str = ""
    is_cut: bool = False
    """It ended at the length limit."""


class ChatClient:
    """`ChatClient("http://127.0.0.1:8200", key=...).complete("policy", [Turn(role="user", content="Hi!")])`

    Every call raises ServiceError.
    """

    def __init__(
        self, url: str, *, key: str = "", timeout_s: float = 600.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        # The environment may name a proxy, which does not reach a loopback address.
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/").removesuffix("/v1"),
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout=timeout_s,
                trust_env=False,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise ServiceError(f"got the address {url!r}: {error}; expected one as in http://127.0.0.1:8200") from None

    def complete(self, model: str, turns: Sequence[Turn], **settings: Any) -> Said:
        """The whole answer."""
        try:
            reply = self._http.post("/v1/chat/completions", json=_body(model, turns, settings))
        except httpx.TransportError as error:
            raise ServiceError(f"the service cannot be reached: {error}; check its address and that it runs") from error
        _require_success(reply)
        with _understood():
            choice = _read(reply.content)["choices"][0]
            return Said(
                text=choice["message"].get("content") or "",
                version=reply.headers.get("x-solon-version", ""),
                is_cut=choice.get("finish_reason") == "length",
            )

    def stream(self, model: str, turns: Sequence[Turn], **settings: Any) -> Iterator[str]:
        """The pieces of the answer as they are written. A stream that breaks off raises."""
        body = _body(model, turns, settings) | {"stream": True}
        is_whole = False
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as reply:
                if not reply.is_success:
                    reply.read()
                    _require_success(reply)
                for line in reply.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if is_whole := data == "[DONE]":
                        break
                    with _understood():
                        event = _read(data)
                        if "error" in event:
                            raise ServiceError(str(event["error"].get("message", "")), status=503)
                        pieces = [choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ())]
                    yield from pieces
        except httpx.TransportError as error:
            raise ServiceError(f"the service cannot be reached: {error}; check its address and that it runs") from error
        if not is_whole:
            raise ServiceError("the answer broke off; ask again")

    def models(self) -> list[str]:
        """Names that `complete` takes."""
        try:
            reply = self._http.get("/v1/models")
        except httpx.TransportError as error:
            raise ServiceError(f"the service cannot be reached: {error}; check its address and that it runs") from error
        _require_success(reply)
        with _understood():
            return [str(one["id"]) for one in _read(reply.content)["data"]]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _body(model: str, turns: Sequence[Turn], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, "messages": [turn.model_dump() for turn in turns], **settings}


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ServiceError("the service does not answer as OpenAI's interface does; is it a model's server?") from None


def _read(content: bytes | str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(content)
    except ValueError:
        raise ServiceError("the service answered with something that is not JSON; is it a model's server?") from None
    return found


def _require_success(reply: httpx.Response) -> None:
    if reply.is_success:
        return
    try:
        message = Failure.model_validate_json(reply.content).error.message
    except ValueError:
        message = f"the service answered {reply.status_code} without a reason"
    raise ServiceError(message, status=reply.status_code)
