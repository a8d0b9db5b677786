"""Commands that show a person what a policy says: `solon chat`."""

from __future__ import annotations

from typing import Annotated

import typer

from solon.cli.options import JsonOption, SetOption

talk_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@talk_app.command()
def chat(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="A run or model; with --url names of a service's models.", show_default=False
        ),
    ],
    url: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Of a service; its key is in SOLON_KEY. Else servers are started.", show_default=False
        ),
    ] = "",
    after_only: Annotated[bool, typer.Option("--after-only", help="Of a run only its newest checkpoint.")] = False,
    system: Annotated[str, typer.Option(help="System turn of every conversation.", show_default=False)] = "",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to a policy; of a run, before and after training side by side. With --json a line for each line of input."""
    from solon.cli.chat import ChatRequest, run_chat

    request = ChatRequest(target=target, url=url, after_only=after_only, system=system, overrides=overrides or [])
    run_chat(request, as_json=as_json)
