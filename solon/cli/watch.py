"""`solon watch`: the live page of runs."""

from __future__ import annotations

import asyncio
import getpass
import ipaddress
import secrets
from collections.abc import Callable
from pathlib import Path

import typer

from solon.cli.doctor import find_run


def run_watch(place: str, *, host: str, port: int, who: str) -> None:
    """Serves the page until it is interrupted. Raises InputError."""
    from cluster.report import default_settings
    from serve_apps.watch.access import LOOPBACK
    from serve_apps.watch.app import build_watch
    from serve_apps.watch.runs import Runs
    from solon.cli.serve import listen

    runs = Runs(Path(place) if place == "runs" else find_run(place))
    listener = listen(host, port)
    address = listener.getsockname()
    token = secrets.token_urlsafe(24)
    is_open = not _is_loopback(host)
    app = build_watch(
        runs,
        token=token,
        port=address[1],
        who=who or _user(),
        defaults=default_settings,
        hosts=() if is_open else LOOPBACK,
    )
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]

    def announce() -> None:
        typer.echo(f"{runs.place} on http://{shown}:{address[1]}/?token={token} ; Ctrl-C ends it")
        if is_open:
            typer.echo("others can reach this address; every user with the token reads the runs and labels them")

    asyncio.run(_serve(app, listener, announce))
    typer.echo("the page has ended")


async def _serve(app: object, listener: object, announce: Callable[[], None]) -> None:
    import uvicorn

    from solon.cli.serve import quiet_server

    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)  # type: ignore[arg-type]
    await quiet_server(settings, announce).serve(sockets=[listener])  # type: ignore[list-item]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without an entry for its user
        return ""
