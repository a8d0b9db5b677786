"""`solon compress`: a smaller copy of an aligned model, if it keeps its alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from solon.cli.options import JsonOption, print_result
from solon.errors import RunFailedError

compress_app = typer.Typer(rich_markup_mode=None)


FormatsOption = Annotated[
    str, typer.Option(metavar="FORMAT,…", help="With --size: the choice; fp8 only if named.", show_default=False)
]
ScreenOption = Annotated[
    float, typer.Option(metavar="SHARE", help="Sweep this share of the layers, chosen by gradients; 0: all.")
]
PruneOption = Annotated[
    str,
    typer.Option(
        metavar="WHAT=SHARE,…",
        help="Remove weights, channels, groups or layers first; method=alignment|wanda|magnitude.",
        show_default=False,
    ),
]
ConstitutionOption = Annotated[
    Path | None, typer.Option(help="Of a judge: its principles; --pairs are gold pairs.", show_default=False)
]
FormatOption = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="One format for all layers.", show_default=False)
]
SizeOption = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Largest size of the linear layers; formats by layer.", show_default=False),
]
AlgorithmOption = Annotated[
    Literal["rtn", "gptq", "smoothquant", "awq"],
    typer.Option(help="How weights are rounded; smoothquant: w8a8 and fp8, awq: int4."),
]
RateOption = Annotated[float, typer.Option(help="Learning rate after --prune, and of --recover's last try.")]
ServeOption = Annotated[
    bool, typer.Option("--serve/--no-serve", help="Let vLLM load the accepted copy and measure speed.")
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Ray tasks that sweep at a time, a CPU each; 0: this process.")]
GpusOption = Annotated[float, typer.Option(min=0.0, help="With --workers: share of a GPU for each.")]


@compress_app.command()
def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a stage, or a directory.", show_default=False)],
    pairs: Annotated[
        Path,
        typer.Option(help="Preference pairs, as `solon label` writes them.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="New directory of the compressed model.", show_default=False)],
    role: Annotated[
        Literal["policy", "critic", "judge", "reward_model"], typer.Option(help="What the model is used as.")
    ] = "policy",
    constitution: ConstitutionOption = None,
    template: Annotated[str | None, typer.Option(help="Of a judge: how it is asked.", show_default=False)] = None,
    form: FormatOption = "",
    size: SizeOption = None,
    formats: FormatsOption = "",
    prune: PruneOption = "",
    screen: ScreenOption = 0.0,
    algorithm: AlgorithmOption = "rtn",
    gate: Annotated[Literal["strict", "lenient"], typer.Option(help="How much may be lost.")] = "strict",
    recover: Annotated[bool, typer.Option("--recover", help="Try further copies when one is rejected.")] = False,
    repair_rate: RateOption = 1e-5,
    max_tokens: Annotated[int, typer.Option(min=8, help="Longest conversation of a pair, in tokens.")] = 1024,
    answers: Annotated[int, typer.Option(min=0, help="Answers that are written and searched for repetition.")] = 480,
    workers: WorkersOption = 0,
    gpus_per_worker: GpusOption = 0.0,
    serve: ServeOption = True,
    as_json: JsonOption = False,
) -> None:
    """Write a smaller copy of an aligned model, if a gate finds that it kept its alignment."""
    from solon.cli.compress import run_compress

    report = run_compress(
        model,
        pairs=pairs,
        out=out,
        role=role,
        constitution=constitution,
        template=template,
        form=form,
        size=size,
        formats=tuple(name for name in formats.split(",") if name),
        prune=prune,
        screen=screen,
        algorithm=algorithm,
        gate=gate,
        recover=recover,
        repair_rate=repair_rate,
        max_tokens=max_tokens,
        answers=answers,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        serve=serve,
        as_json=as_json,
    )
    print_result(report, as_json)
    if report["verdict"] != "accept":
        raise RunFailedError(f"the alignment was not kept: {report['reason']}")
