"""`solon serve feedback SETTINGS`: the feedback service in this process; `solon serve key NAME`: a key for a caller."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solon.cli.options import JsonOption, SetOption, print_result
from solon.errors import InputError

if TYPE_CHECKING:
    from serve_apps.config import ServiceFile
    from serve_apps.service import FeedbackService

SHUTDOWN_S = 20
"""Longest time for requests that are being answered when the service is asked to end."""
serve_app = typer.Typer(name="serve", help="Judges as services.", no_args_is_help=True, rich_markup_mode=None)


@serve_app.callback()
def root() -> None:
    """Judges as services."""


@serve_app.command("feedback")
def feedback(
    settings: Annotated[Path, typer.Argument(metavar="SETTINGS.toml", help="A service file.", show_default=False)],
    overrides: SetOption = None,
) -> None:
    """Serve judges over HTTP until it is interrupted. On Ray Serve: serve run serve_apps.feedback:app settings=FILE"""
    run_feedback(settings, overrides=overrides or [])


@serve_app.command("key")
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the caller.", show_default=False)],
    keys: Annotated[Path, typer.Option(help="File of hashed keys.")] = Path("keys.txt"),
    as_json: JsonOption = False,
) -> None:
    """Make a key for a caller, add its hash to a file, and print it: it is shown only once."""
    from serve_apps.keys import new_key

    made = new_key(name, keys)
    if not as_json:
        typer.echo(made)
    print_result({"name": name, "key": made, "keys": str(keys)}, as_json)


def run_feedback(settings: Path, *, overrides: list[str]) -> None:
    """Serve until a signal ends it. Raises InputError, RunFailedError."""
    from serve_apps.config import ServiceFile
    from serve_apps.service import FeedbackService
    from solon.cli.names import resolver

    file = ServiceFile.load(settings, overrides=overrides)
    named = [name for judge in file.judges.values() for name in (judge.model, judge.constitution)]
    path = resolver(named, progress=True)
    judges = {
        name: judge.model_copy(update={"model": path(judge.model), "constitution": path(judge.constitution)})
        for name, judge in file.judges.items()
    }
    file = file.model_copy(update={"judges": judges})
    _check(file)
    asyncio.run(_serve(FeedbackService(file), _listen(file.host, file.port)))


async def _serve(service: FeedbackService, listener: socket.socket) -> None:
    """Start the judges behind a server that says so meanwhile, and end both. Raises what a judge's start raises."""
    import uvicorn

    from serve_apps.http import build_app

    class Server(uvicorn.Server):
        """Ends at the first signal, at once at the second, and does not raise them again."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def _asked(self, *_: object) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

    app = build_app(service, starts=False)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_S)
    server = Server(settings)

    async def start() -> None:
        try:
            await service.start()
            address = "http://{}:{}".format(*listener.getsockname()[:2])
            typer.echo(f"feedback service on {address}, its interface on {address}/docs; Ctrl-C ends it")
        except BaseException:
            server.should_exit = True
            raise

    starting = asyncio.create_task(start())
    try:
        await server.serve(sockets=[listener])
        if not starting.done():
            starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        typer.echo("the feedback service has ended")
    finally:
        await service.close()


def _check(file: ServiceFile) -> None:
    """Raises InputError for a judge that cannot answer, before one is loaded."""
    from cluster.preflight.checks import check_judge
    from serve_apps.keys import Keys
    from solon.constitution.constitution import Constitution

    if file.keys:
        Keys.load(Path(file.keys))
    for name, judge in file.judges.items():
        try:
            check_judge(
                judge.model,
                judge.feedback.template,
                trusted=judge.judging.trust_remote_code,
                options=judge.judging,
                feedback=judge.feedback,
                constitution=Constitution.load(judge.constitution),
            )
        except InputError as error:
            raise InputError(f"judges.{name}: {error}") from None


def _listen(host: str, port: int) -> socket.socket:
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(kind, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        place = f"{host}:{port}"
        raise InputError(
            f"{place} cannot be used: {error.strerror}; choose another port, or 0 for a free one"
        ) from None
    listener.listen(1024)
    return listener
