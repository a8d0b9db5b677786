"""`solon models`: models from other formats."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from solon.files.json_text import json_text
from solon.files.plain_text import visible
from solon.host.submitted_job import refuse_working_copy

if TYPE_CHECKING:
    from compression.gguf.importing import ImportReport

models_app = typer.Typer(
    name="models", help="Import models of other formats.", no_args_is_help=True, rich_markup_mode=None
)


@models_app.callback()
def root() -> None:
    """Import models of other formats."""


@models_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A GGUF file.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory that is written.", show_default=False)],
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Number format of the weights.")] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT when it is an earlier import.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Write a GGUF file as a Hugging Face directory: weights, tokenizer, chat template, special tokens."""
    refuse_working_copy(out, "OUT")
    from compression.gguf.importing import import_gguf

    report = import_gguf(source, out, dtype=dtype, force=force)
    if as_json:
        typer.echo(json_text({"directory": str(out), **asdict(report)}, indent=2))
        return
    typer.echo(visible(f"{out}: {source.name}, imported"))
    for line in describe(report):
        typer.echo(visible(line))


def import_into_cache(source: Path, *, progress: bool) -> Path:
    """The cached import of a GGUF file; what was imported now is described, with progress."""
    from compression.gguf.importing import cached_import

    def tell(report: ImportReport) -> None:
        typer.echo(visible(f"imported {source}, once for this content"))
        for line in describe(report):
            typer.echo(visible(line))

    return cached_import(source, tell=tell if progress else None)


def describe(report: ImportReport) -> list[str]:
    """What was imported, a line for each fact that a user checks; remarks last."""
    others = ", ".join(str(index) for index in report.stops[1:])
    ends = f"{report.eos} ends an answer" + (f" (the ids {others} do as well)" if others else "")
    begins = f"{report.bos} begins a text" if report.bos else "no token begins a text"
    facts: dict[str, Any] = {
        "model": report.name,
        "architecture": f"{report.architecture}, {report.layers} layers, {report.parameters / 1e6:,.1f} M parameters"
        f"{', tied embeddings' if report.tied else ''}",
        "weights": f"{report.encoding} in the file, {report.dtype} in the directory",
        "vocabulary": f"{report.vocabulary:,} tokens, a context of {report.context:,}",
        "special tokens": f"{ends}, {report.pad} pads, {begins}",
        "chat template": "from the file" if report.chat_template else "none",
        "licence": report.licence or "not stated in the file",
    }
    return [*(f"  {key:<15} {value}" for key, value in facts.items()), *(f"warning: {one}" for one in report.remarks)]
