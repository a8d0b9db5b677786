"""Commands that show a person what models say, and how a run went: `solon chat`, `solon report`, `solon watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from solon.cli.options import JsonOption, SetOption, print_result
from solon.errors import InputError

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


@talk_app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or its name.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default report.html in the run.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file about a run. It shows scores, answers, feedback, cost and faults, also during the run."""
    from solon.cli.report import run_report

    print_result(run_report(run, out=out, as_json=as_json), as_json)


@talk_app.command()
def watch(
    place: Annotated[
        str,
        typer.Argument(metavar="RUN|DIRECTORY", help="A run, or a directory of runs.", show_default=False),
    ] = "runs",
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback are open to others.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8420,
    name: Annotated[str, typer.Option(help="Who labels; by default the user's name.", show_default=False)] = "",
) -> None:
    """Show runs in a browser. The page follows them: curves, every answer and label, SQL; people can label."""
    from solon.cli.watch import run_watch

    run_watch(place, host=host, port=port, who=name)


@talk_app.command()
def track(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or its name.", show_default=False)],
    tensorboard: Annotated[str, typer.Option(metavar="DIR", help="Event files below it.", show_default=False)] = "",
    wandb: Annotated[
        str, typer.Option(metavar="PROJECT", help="WANDB_MODE=offline keeps it here.", show_default=False)
    ] = "",
    mlflow: Annotated[str, typer.Option(metavar="URI", help="As in sqlite:///mlflow.db.", show_default=False)] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Until the run has ended.")] = False,
) -> None:
    """Send a run's metrics to a tracker. It reads the run's files; the run does not wait for it."""
    from solon.cli.doctor import find_run
    from solon.tracking.sinks import track

    places = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}
    chosen = {name: place for name, place in places.items() if place}
    if not chosen:
        raise InputError("got no tracker, expected one, as in --tensorboard runs/tensorboard")
    track(find_run(run), chosen, follow=follow, say=typer.echo)


@talk_app.command()
def push(
    source: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run's last checkpoint, or a model.", show_default=False)
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Name on the hub, as in org/model.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and card; send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Of a new repository.")] = False,
    direct: Annotated[
        bool, typer.Option("--direct", help="Commit to the main branch, without a pull request.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Push a policy to the Hugging Face hub. A pull request with a model card; refuses pickles and secrets."""
    from solon.cli.push import run_push

    print_result(run_push(source, repo, dry_run=dry_run, private=private, direct=direct, as_json=as_json), as_json)
