"""`solon judges`: the commands. Each imports its implementation when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from solon.files.json_text import json_text
from solon.host.submitted_job import refuse_working_copy

judges_app = typer.Typer(
    name="judges",
    help="Compare judges, and make smaller ones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

PairsOption = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="Pairs with the right verdict (JSONL, Parquet), or `nursery`.", show_default=False
    ),
]
ConstitutionOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The constitution; the nursery's own with `--pairs nursery`.")
]
TemplateOption = Annotated[
    str | None, typer.Option(help="Words around the data: `assistant`, or `compact` for tiny models.")
]
ChatOption = Annotated[
    list[str] | None,
    typer.Option("--chat", metavar="KEY=VALUE", help="An argument of the chat template, as in enable_thinking=false."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@judges_app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Directories, or DIR@VARIANT: fp32, bf16, fp16, hf, bnb_int8, bnb_nf4. The first is the reference.",
            show_default=False,
        ),
    ],
    pairs: PairsOption,
    constitution: ConstitutionOption = None,
    template: TemplateOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write judges.json and judges.html here.")] = None,
    usd_per_hour: Annotated[float, typer.Option(min=0, help="Price of the machine, for cost per label.")] = 0.0,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of pairs to ask about.")] = 2000,
    parts: Annotated[int, typer.Option(min=1, help="Timed parts; rates are medians over them.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of an engine.")] = 1,
    max_model_len: Annotated[int, typer.Option(min=16, help="Longest question in tokens.")] = 4096,
    chat: ChatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Speed, memory, agreement and cost of judges on the same pairs, one after the other."""
    from solon.cli.compare import run_compare

    if out is not None:
        refuse_working_copy(out, "--out")
    result = run_compare(
        models,
        pairs=pairs,
        constitution=constitution,
        template=template,
        out=out,
        usd_per_hour=usd_per_hour,
        limit=limit,
        parts=parts,
        threads=threads,
        max_model_len=max_model_len,
        chat=chat,
        as_json=as_json,
    )
    _print(result, as_json)


@judges_app.command()
def quantise(
    source: Annotated[Path, typer.Argument(metavar="MODEL", help="The judge's directory.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.", show_default=False)],
    scheme: Annotated[str, typer.Option(help="w8a8, w4a16, w8a8-gptq, w4a16-gptq or fp8.")] = "w8a8",
    pairs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Pairs to calibrate on, for gptq; not those used for comparison."),
    ] = None,
    constitution: ConstitutionOption = None,
    template: TemplateOption = None,
    samples: Annotated[int, typer.Option(min=8, help="Judge prompts to calibrate on.")] = 512,
    chat: ChatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a quantised copy of a judge, calibrated on real judge prompts."""
    from solon.cli.compare import run_quantise

    refuse_working_copy(target, "the new directory")
    result = run_quantise(
        source,
        target,
        scheme=scheme,
        pairs=pairs,
        constitution=constitution,
        template=template,
        samples=samples,
        chat=chat,
        as_json=as_json,
    )
    if as_json:
        typer.echo(json_text(result, indent=2))


CalibrationOption = Annotated[str, typer.Option(metavar="FILE", help="The judge's calibration.")]
LimitOption = Annotated[int, typer.Option(min=1, help="Largest number of pairs to ask about.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of the engine.")]
LengthOption = Annotated[int, typer.Option(min=16, help="Longest question in tokens.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Directory, hub name or endpoint file.")]


@judges_app.command("test")
def examine(
    model: ModelArgument,
    pairs: PairsOption,
    constitution: ConstitutionOption = None,
    template: TemplateOption = None,
    calibration: CalibrationOption = "",
    limit: LimitOption = 5000,
    threads: ThreadsOption = 1,
    max_model_len: LengthOption = 4096,
    chat: ChatOption = None,
    as_json: JsonOption = False,
) -> None:
    """How often a judge prefers the right answer, subset by subset, in both orders."""
    from solon.cli.examine import run_test
    from solon.cli.judge_inputs import JudgeInputs

    inputs = JudgeInputs([model], pairs=pairs, constitution=constitution, template=template, limit=limit,
                         threads=threads, max_model_len=max_model_len, chat=chat, as_json=as_json)  # fmt: skip
    _print(run_test(inputs, model, calibration=calibration), as_json)


@judges_app.command()
def calibrate(
    model: ModelArgument,
    pairs: PairsOption,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the calibration is written.", show_default=False)],
    constitution: ConstitutionOption = None,
    template: TemplateOption = None,
    limit: LimitOption = 5000,
    threads: ThreadsOption = 1,
    max_model_len: LengthOption = 4096,
    chat: ChatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the calibration of a judge, on pairs that are not used for comparison."""
    from solon.cli.examine import run_calibrate
    from solon.cli.judge_inputs import JudgeInputs

    refuse_working_copy(out, "--out")
    inputs = JudgeInputs([model], pairs=pairs, constitution=constitution, template=template, limit=limit,
                         threads=threads, max_model_len=max_model_len, chat=chat, held_out=False,
                         as_json=as_json)  # fmt: skip
    _print(run_calibrate(inputs, model, out=out), as_json)


@judges_app.command()
def cascade(
    model: ModelArgument,
    pairs: PairsOption,
    alpha: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of errors allowed in what it decides.")
    ] = 0.05,
    delta: Annotated[float, typer.Option(min=0.001, max=0.5, help="How often that promise may fail.")] = 0.05,
    constitution: ConstitutionOption = None,
    template: TemplateOption = None,
    calibration: CalibrationOption = "",
    limit: LimitOption = 5000,
    threads: ThreadsOption = 1,
    max_model_len: LengthOption = 4096,
    chat: ChatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the uncertainty up to which a judge may decide alone, as the first judge of a cascade."""
    from solon.cli.examine import run_cascade
    from solon.cli.judge_inputs import JudgeInputs

    inputs = JudgeInputs([model], pairs=pairs, constitution=constitution, template=template, limit=limit,
                         threads=threads, max_model_len=max_model_len, chat=chat, as_json=as_json)  # fmt: skip
    _print(run_cascade(inputs, model, alpha=alpha, delta=delta, calibration=calibration), as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json_text(result, indent=2))
