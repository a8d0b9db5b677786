"""Options and output that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from solon.files.json_text import json_text

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file or a setting, as in seed=1."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def print_result(result: dict[str, object], as_json: bool) -> None:
    """The result of a command, if it was asked for as JSON."""
    if as_json:
        typer.echo(json_text(result, indent=2))
