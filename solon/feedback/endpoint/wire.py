"""One HTTP request to an endpoint, and a breaker that stops requests. Every failure is returned as a `Problem`.

Each request has one deadline for connecting, waiting and a body that arrives slowly. The size of a body is bounded. A
cancelled request closes its connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from solon.feedback.endpoint.reply import Problem, clean, read_error
from solon.verdicts import Status

if TYPE_CHECKING:
    import httpx

MOST_BODY_BYTES = 1 << 20
"""Most bytes of a reply; a reply to a one-token question has a few kilobytes."""
CONNECT_S = 10.0


class Wire:
    """`reply = await Wire(base_url, key="", ...).post("/completions", content)`; a `Problem` instead of bytes unless
    the status is 200."""

    def __init__(self, base_url: str, *, key: str, timeout_s: float, is_loopback: bool) -> None:
        import httpx

        self._base_url = base_url
        self.key = key
        self._timeout_s = timeout_s
        self._is_loopback = is_loopback
        # Created once, since it loads all certificates; plain http needs none.
        self._certificates = httpx.create_ssl_context() if base_url.startswith("https:") else False
        # One client per connection, most recently used first: a client with a pool of many connections scans all of
        # them at every request, and permanently loses slots to cancelled requests.
        self._idle: list[httpx.AsyncClient] = []
        self._is_closed = False

    async def post(self, path: str, content: bytes) -> bytes | Problem:
        """The body of a reply, or the problem."""
        import httpx

        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(path, content)
        except TimeoutError:
            words = f"no complete answer within {self._timeout_s:g} s"
            return Problem(status=Status.TIMEOUT, detail=words, is_down=True, is_billed=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return self._lost(f"the endpoint cannot be reached ({type(error).__name__}: {error})", is_billed=False)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            return self._lost(f"the connection was lost ({type(error).__name__}: {error})", is_billed=True)

    async def close(self) -> None:
        """Closes idle connections; the others close with their requests."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop().aclose()

    def _client(self) -> httpx.AsyncClient:
        import httpx

        headers = {
            "content-type": "application/json",
            # A small compressed body can unpack to gigabytes.
            "accept-encoding": "identity",
            **({"authorization": f"Bearer {self.key}"} if self.key else {}),
        }
        return httpx.AsyncClient(
            headers=headers,
            # One deadline covers the whole request; httpx's own timeouts restart with every byte.
            timeout=httpx.Timeout(None, connect=min(CONNECT_S, self._timeout_s)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=1),
            verify=self._certificates,
            follow_redirects=False,
            trust_env=not self._is_loopback,
        )

    async def _exchange(self, path: str, content: bytes) -> bytes | Problem:
        client = self._idle.pop() if self._idle else self._client()
        try:
            return await self._send(client, path, content)
        finally:
            if self._is_closed:
                await client.aclose()
            else:
                self._idle.append(client)

    async def _send(self, client: httpx.AsyncClient, path: str, content: bytes) -> bytes | Problem:
        async with client.stream("POST", self._base_url + path, content=content) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                return Problem(status=Status.UNPARSABLE, detail="the reply is compressed, which was not asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MOST_BODY_BYTES:
                    # Leaving the block closes the connection with the rest unread.
                    words = f"the reply is longer than {MOST_BODY_BYTES >> 20} MiB; reading it was stopped"
                    return Problem(status=Status.UNPARSABLE, detail=words, is_billed=True)
            if response.is_success:
                return bytes(body)
            return read_error(response.status_code, response.headers, bytes(body), now=time.time(), secret=self.key)

    def _lost(self, words: str, *, is_billed: bool) -> Problem:
        return Problem(
            status=Status.TRANSPORT_ERROR,
            detail=clean(words, secret=self.key),
            may_retry=True,
            is_down=True,
            is_billed=is_billed,
        )


class Breaker:
    """Stops requests to an endpoint that is down: after `failures` in a row no request is made for `cool_down_s`, then
    one probe is sent; its success closes the breaker. A probe without a result is followed by another."""

    def __init__(self, *, failures: int, cool_down_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._in_a_row = 0
        self._rests_until = 0.0
        self.trips = 0
        self.last = ""
        """Message of the last failure."""

    def allows(self) -> bool:
        """Whether to send a request now. Called once per attempt: a yes while the breaker is open is the probe."""
        if self._in_a_row < self._limit:
            return True
        if self._clock() < self._rests_until:
            return False
        self._rests_until = self._clock() + self._cool_down_s
        return True

    def succeeded(self) -> None:
        """A call succeeded: the breaker closes."""
        self._in_a_row = 0

    def failed(self, detail: str) -> None:
        """A call failed; after `limit` failures in a row the breaker opens for `cool_down_s` seconds."""
        self._in_a_row += 1
        self.last = detail
        if self._in_a_row >= self._limit:
            self.trips += self._in_a_row == self._limit
            self._rests_until = self._clock() + self._cool_down_s

    def __str__(self) -> str:
        return (
            f"not asked: the endpoint failed {self._in_a_row} times in a row and pauses for {self._cool_down_s:g} s; "
            f"last: {self.last}"
        )
