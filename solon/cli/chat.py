"""`solon chat RUN`: talk to a policy in the terminal; of a run, before and after training side by side."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.cli.names import resolver
from solon.client.chat import ChatClient, Said
from solon.client.feedback import ServiceError
from solon.client.wire import Turn
from solon.engines.base import EngineOptions
from solon.engines.lengths import engine_config
from solon.engines.openai_server import SERVED_NAME, served
from solon.engines.sampling import SamplingOptions
from solon.errors import InputError, RunFailedError
from solon.files.overrides import settings_from
from solon.files.plain_text import visible

KEY_VARIABLE = "SOLON_KEY"
HELP = "/new begins a new conversation, /quit or Ctrl-D ends"


class ChatSettings(BaseModel):
    """Every setting that `--set` can change: `--set sampling.max_tokens=128`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: EngineOptions = EngineOptions()
    sampling: SamplingOptions = SamplingOptions(temperature=0.7)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """The arguments of the command line."""

    target: str
    """A run, a model, or names of models of the service at `url`."""
    url: str = ""
    after_only: bool = False
    system: str = ""
    overrides: Sequence[str] = ()


@dataclass(slots=True)
class Partner:
    """A policy that is talked to, and what was said."""

    name: str
    client: ChatClient
    model: str
    turns: list[Turn] = field(default_factory=list)


def run_chat(request: ChatRequest, *, as_json: bool) -> None:
    """Read lines from standard input and answer each. Raises InputError, RunFailedError."""
    settings = settings_from(ChatSettings, {}, request.overrides)
    console = Console(highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        partners = list(_partners(request, settings, stack, console, quiet=as_json))
        said = settings.sampling.model_dump() | {"stop": list(settings.sampling.stop)}
        begin(partners, request.system)
        if not as_json:
            console.print(Text(HELP), style="dim")
        for line in _lines(is_shown=not as_json and sys.stdin.isatty()):
            if line == "/quit":
                break
            if line == "/new":
                begin(partners, request.system)
                continue
            try:
                _turn(partners, line, said, console, as_json=as_json)
            except ServiceError as error:
                if error.status == 0 or error.status >= 500 or as_json:
                    raise RunFailedError(str(error)) from None
                console.print(Text(visible(str(error))), style="red")
                for partner in partners:
                    partner.turns.pop()  # the line that was not answered


def begin(partners: Sequence[Partner], system: str) -> None:
    """Forget what was said."""
    for partner in partners:
        partner.turns = [Turn(role="system", content=system)] if system else []


def _turn(partners: Sequence[Partner], line: str, settings: dict[str, Any], console: Console, *, as_json: bool) -> None:
    asked = Turn(role="user", content=line)
    for partner in partners:
        partner.turns.append(asked)
    if len(partners) == 1 and not as_json:
        text = ""
        for piece in partners[0].client.stream(partners[0].model, partners[0].turns, **settings):
            text += piece
            console.print(Text(visible(piece)), end="")
        console.print()
        found = [Said(text=text)]
    else:
        with ThreadPoolExecutor(len(partners)) as pool:
            answers = [pool.submit(one.client.complete, one.model, one.turns, **settings) for one in partners]
            found = [answer.result() for answer in answers]
        _show(partners, line, found, console, as_json=as_json)
    for partner, said in zip(partners, found, strict=True):
        partner.turns.append(Turn(role="assistant", content=said.text or "(nothing)"))


def _show(partners: Sequence[Partner], line: str, found: Sequence[Said], console: Console, *, as_json: bool) -> None:
    if as_json:
        answers = {partner.name: said.text for partner, said in zip(partners, found, strict=True)}
        print(json.dumps({"prompt": line, "answers": answers}), flush=True)
        return
    table = Table(show_lines=True, expand=True)
    for partner in partners:
        table.add_column(Text(visible(partner.name)), ratio=1, overflow="fold")
    table.add_row(*(Text(visible(said.text.strip()) + (" […]" if said.is_cut else "")) for said in found))
    console.print(table)


def _lines(*, is_shown: bool) -> Iterator[str]:
    while True:
        if is_shown:
            sys.stdout.write("> ")
            sys.stdout.flush()
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            return
        if not line:
            return
        if line := line.strip():
            yield line


def _partners(
    request: ChatRequest, settings: ChatSettings, stack: ExitStack, console: Console, *, quiet: bool
) -> Iterator[Partner]:
    if request.url:
        client = ChatClient(request.url, key=os.environ.get(KEY_VARIABLE, ""))
        stack.callback(client.close)
        for name in filter(None, (part.strip() for part in request.target.split(","))):
            yield Partner(name, client, name)
        return
    from cluster.preflight.checks import check_model
    from solon.engines.device import vllm_build

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="solon-chat-")))
    for number, (name, model) in enumerate(policies_of(request.target, after_only=request.after_only)):
        path = resolver([model], progress=not quiet)(model)
        check_model(path, role="policy", opt_in="engine", trusted=settings.engine.trust_remote_code)
        if not quiet:
            console.print(Text(visible(f"starting {name}: {path}")), style="dim")
        config = engine_config(path, settings.engine)
        log = folder / f"{number}.log"
        address = stack.enter_context(served(config, on_gpu=vllm_build() == "gpu", log=log))
        client = ChatClient(address)
        stack.callback(client.close)
        yield Partner(name, client, SERVED_NAME)


def policies_of(target: str, *, after_only: bool) -> list[tuple[str, str]]:
    """Names and models: of a run, the policy it began with and its newest checkpoint; else the model itself.

    Raises InputError for a run without a checkpoint.
    """
    from serve_apps.versions import checkpoints_of, newest

    directory = target if Path(target).exists() or not (Path("runs") / target).is_dir() else str(Path("runs") / target)
    if checkpoints_of(directory) is None:
        return [("policy", newest(directory).path if Path(directory).is_dir() else directory)]
    version = newest(directory)
    after = (f"after ({version.label})", version.path)
    if after_only:
        return [after]
    try:
        before = str(json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))["policy"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{directory}/config.json does not name the policy that the run began with; add --after-only"
        ) from None
    return [("before", before), after]
