"""`solon serve feedback SETTINGS`, `solon serve policy SETTINGS|MODEL`: services in this process.

`solon serve key NAME` makes a key for a caller."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from solon.cli.options import JsonOption, SetOption, print_result
from solon.errors import InputError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from serve_apps.config import ServiceBase, ServiceFile
    from serve_apps.policy_config import PolicyFile
    from serve_apps.web import Service

SHUTDOWN_S = 20
"""Longest time for requests that are being answered when the service is asked to end."""
serve_app = typer.Typer(
    name="serve", help="Judges and policies as services.", no_args_is_help=True, rich_markup_mode=None
)
F = TypeVar("F", bound="ServiceBase")


@serve_app.callback()
def root() -> None:
    """Judges and policies as services."""


@serve_app.command("feedback")
def feedback(
    settings: Annotated[Path, typer.Argument(metavar="SETTINGS.toml", help="A service file.", show_default=False)],
    overrides: SetOption = None,
) -> None:
    """Serve judges over HTTP until it is interrupted. On Ray Serve: serve run serve_apps.feedback:app settings=FILE"""
    from serve_apps.config import ServiceFile
    from serve_apps.http import build_app
    from serve_apps.service import FeedbackService

    file = _with_paths(ServiceFile.load(settings, overrides=overrides or []))
    _check_feedback(file)
    service = FeedbackService(file)
    asyncio.run(_serve("feedback service", service, build_app(service, starts=False), listen(file.host, file.port)))


@serve_app.command("policy")
def policy(
    model: Annotated[
        str,
        typer.Argument(metavar="SETTINGS.toml|MODEL", help="A service file; or a run or model.", show_default=False),
    ],
    overrides: SetOption = None,
) -> None:
    """Serve policies through OpenAI's interface until it is interrupted. Of a run that trains, every newer checkpoint
    replaces the one before. On Ray Serve: serve run serve_apps.policy:app settings=FILE"""
    from serve_apps.policy_http import build_policy_app
    from serve_apps.policy_service import PolicyService

    file = _with_paths(policy_file(model, overrides or []))
    _check_policies(file)
    service = PolicyService(file)
    app = build_policy_app(service, starts=False)
    asyncio.run(_serve("policy service", service, app, listen(file.host, file.port)))


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


def policy_file(model: str, overrides: list[str]) -> PolicyFile:
    """A service file; or settings of one model under the name `policy`, to which overrides of `engine`, `follow` and
    `swap` apply. Raises InputError."""
    from pydantic import ValidationError

    from serve_apps.policy_config import PolicyFile, PolicySection
    from solon.files.overrides import parse_override, put
    from solon.files.validation import describe_invalid

    if model.endswith(".toml"):
        return PolicyFile.load(model, overrides=overrides)
    raw: dict[str, object] = {"policies": {"policy": {"model": model}}}
    for override in overrides:
        name, value, _ = parse_override(override)
        inner = name.partition(".")[0] in PolicySection.model_fields
        put(raw, f"policies.policy.{name}" if inner else name, value, override)
    try:
        return PolicyFile.model_validate(raw)
    except ValidationError as error:
        raise InputError(describe_invalid(PolicyFile, error)) from None


async def _serve(what: str, service: Service, app: FastAPI, listener: socket.socket) -> None:
    """Start the engines behind a server that says so meanwhile, and end both. Raises what their start raises."""
    import uvicorn

    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_S)
    server = quiet_server(settings)

    async def start() -> None:
        try:
            await service.start()
            address = "http://{}:{}".format(*listener.getsockname()[:2])
            typer.echo(f"{what} on {address}, its interface on {address}/docs; Ctrl-C ends it")
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
        typer.echo(f"the {what} has ended")
    finally:
        await service.close()


def quiet_server(settings: uvicorn.Config, announce: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """A server that ends at the first signal, at once at the second, and does not raise them again. announce: called
    when it ends in this way; before, a signal ends the process with a failure."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                announce()
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def _asked(self, *_: object) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

    return Server(settings)


def _with_paths(file: F) -> F:
    """The file with paths instead of names and GGUF files; makes what is not in the cache. Raises InputError."""
    from solon.cli.names import resolver
    from solon.files.marks import NamesFile, NamesModel, mapped, values

    path = resolver([*values(file, NamesModel), *values(file, NamesFile)], progress=True)
    return mapped(mapped(file, NamesModel, path), NamesFile, path)


def _check_feedback(file: ServiceFile) -> None:
    """Raises InputError for a judge that cannot answer, before one is loaded."""
    from cluster.preflight.checks import check_judge, check_model
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
    for name, writer in file.writers.items():
        try:
            check_model(
                writer.model, role="policy", opt_in="engine", trusted=writer.engine.trust_remote_code,
                certified_as=("critic",), uncertified=writer.allow_uncertified,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"writers.{name}: {error}") from None


def _check_policies(file: PolicyFile) -> None:
    """Raises InputError for a policy that cannot be served, before one is loaded."""
    from cluster.preflight.checks import check_model
    from serve_apps.keys import Keys
    from serve_apps.versions import newest, require_certificate

    if file.keys:
        Keys.load(Path(file.keys))
    for name, section in file.policies.items():
        try:
            path = newest(section.model).path
            check_model(
                path, role="policy", opt_in="engine", trusted=section.engine.trust_remote_code,
                uncertified=section.allow_uncertified,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"policies.{name}: {error}") from None
        if not section.allow_uncertified:
            require_certificate(path, where=f"policies.{name}")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError for an address that cannot be used."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(kind, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        is_taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = "choose another port, or 0 for a free one" if is_taken else "give an address of this machine as host"
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}; {remedy}") from None
    listener.listen(1024)
    return listener
