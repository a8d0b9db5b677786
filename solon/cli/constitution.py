"""`solon constitution`: constitutions from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from solon.cli.terminal import visible
from solon.errors import InputError
from solon.files.json_text import json_text
from solon.host.submitted_job import refuse_working_copy

constitution_app = typer.Typer(
    name="constitution", help="Import constitutions of other tools.", no_args_is_help=True, rich_markup_mode=None
)


@constitution_app.callback()
def root() -> None:
    """Import constitutions of other tools."""


@constitution_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="JSON, JSONL or YAML.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The constitution that is written.", show_default=False)],
    form: Annotated[
        Literal["auto", "hf", "langchain"],
        typer.Option(help="hf: {critic, revision}; langchain: {name, critique_request, revision_request}."),
    ] = "auto",
    constitution_id: Annotated[str, typer.Option("--id", help="Its id; by default made of the file's name.")] = "",
    kind: Annotated[
        Literal["harmless", "helpful", "honest", "style", "safety"], typer.Option(help="What its principles are about.")
    ] = "harmless",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE when it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Write another tool's constitution as Solon's. Missing questions are derived, and marked as such."""
    refuse_working_copy(out, "--out")
    result = run_import(source, out=out, form=form, constitution_id=constitution_id, kind=kind, force=force)
    if as_json:
        typer.echo(json_text(result, indent=2))
        return
    for warning in result["warnings"]:
        typer.echo(visible(f"warning: {warning}"))
    typer.echo(visible(f"{out}: {len(result['principles'])} principle(s) from {source} ({result['form']} form)."))


def run_import(
    source: Path,
    *,
    out: Path,
    form: Literal["auto", "hf", "langchain"],
    constitution_id: str,
    kind: Literal["harmless", "helpful", "honest", "style", "safety"],
    force: bool,
) -> dict[str, Any]:
    """Reads, checks and writes. Raises InputError for another kind of file, and for an `out` that exists."""
    from solon.constitution.imports import import_constitution

    imported = import_constitution(source, constitution_id=constitution_id, form=form, kind=kind)
    try:
        with out.open("w" if force else "x", encoding="utf-8") as file:
            file.write(imported.as_yaml())
    except FileExistsError:
        raise InputError(f"{out} exists; choose another --out, or replace it with --force") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{out} cannot be written: {error}; choose another --out") from None
    return {
        "out": str(out),
        "form": imported.form,
        "constitution": imported.constitution.id,
        "constitution_hash": imported.constitution.hash,
        "principles": [principle.id for principle in imported.constitution.principles],
        "warnings": list(imported.warnings),
    }
