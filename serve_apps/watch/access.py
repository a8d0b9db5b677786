"""Who may use the page: users who have its address with the token, under this host's own names.

Loopback is no boundary: other accounts of the machine reach it, and a foreign page can by DNS rebinding. So the address
holds a random token, which the first visit exchanges for a cookie; other names of the host are refused; and a write
needs a header that no foreign page can send.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Figures set styles of their elements; no inline script runs."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
MOST_BODY = 64 * 1024


class Access:
    """ASGI middleware. token: of the address; hosts: names under which the page is reached; none: any IP address."""

    def __init__(self, app: ASGIApp, *, token: str, port: int, hosts: Collection[str] = LOOPBACK) -> None:
        self._app, self._token, self._hosts = app, token, tuple(hosts)
        # Cookies do not tell ports apart: pages on two ports would sign each other out.
        self._cookie = f"solon_watch_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not self._is_known(host):
            return PlainTextResponse("this page is not served under this name", status_code=421)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(name == "token" and self._is_token(value) for name, value in query):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            # The address as it came: decoded, a `?` in a name would begin a query, and `//` would name another host.
            path = "/" + scope.get("raw_path", b"/").decode("latin-1").partition("?")[0].lstrip("/\\")
            answer = RedirectResponse(path, status_code=303)
            answer.headers["location"] = f"{path}?{rest}" if rest else path
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return answer
        if not any(self._is_token(value) for value in _cookies(headers.get("cookie", ""), self._cookie)):
            return PlainTextResponse("open the address that `solon watch` printed, with its token", status_code=403)
        if scope["method"] not in ("GET", "HEAD"):
            if headers.get("hx-request") != "true" or headers.get("origin", "").lower() != f"http://{host}":
                return PlainTextResponse("labels are written from this page only", status_code=403)
            length = headers.get("content-length", "")
            if not length.isdigit() or int(length) > MOST_BODY:
                return PlainTextResponse("the request is too large", status_code=413)
        return None

    def _is_token(self, value: str) -> bool:
        return hmac.compare_digest(value.encode("utf-8", "replace"), self._token.encode())

    def _is_known(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._hosts:
            return name in self._hosts
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name == "localhost"
        return True


def _cookies(header: str, name: str) -> list[str]:
    """Values of a cookie. Other programs on this host share the header and may put anything into it."""
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return [value for key, _, value in pairs if key == name]
