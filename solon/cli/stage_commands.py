"""Commands around a run: data sets, alignments of several stages, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from solon.cli.options import JsonOption, SetOption, print_result
from solon.errors import RunFailedError
from solon.host.submitted_job import refuse_working_copy

stages_app = typer.Typer(rich_markup_mode=None)


@stages_app.command()
def align(
    path: Annotated[Path, typer.Argument(metavar="ALIGN.toml", help="An alignment file.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the folder under runs/.")] = None,
    again_from: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="Make this stage and later ones again.", show_default=False)
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and why.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train in several stages: preferences, SFT, DPO, reward model, RL. A stage that exists is not made again."""
    from solon.cli.align import run_align

    result = run_align(
        path, name=name, again_from=again_from, dry_run=dry_run, overrides=overrides or [], as_json=as_json
    )
    print_result(result, as_json)


@stages_app.command()
def compare(
    path: Annotated[Path, typer.Argument(metavar="COMPARE.toml", help="A comparison file.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the folder under runs/.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the stages that would run, and why.")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one policy by several methods over several seeds, and print what each gives and costs."""
    from solon.cli.compare_methods import run_compare

    result = run_compare(path, name=name, dry_run=dry_run, overrides=overrides or [], as_json=as_json)
    print_result(result, as_json)
    if failed := result.get("failed"):
        raise RunFailedError(f"{', '.join(failed)} failed: {next(iter(failed.values()))}; the table has the others")


@stages_app.command()
def label(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS",
            help="JSONL, JSON, CSV or Parquet, a folder of them, or a saved data set. A row has `prompt` (text or "
            "messages) and `answers` (two or more; also `completions`, `responses`), or `chosen` and `rejected`.",
        ),
    ],
    judge: Annotated[
        str,
        typer.Option(help="Feedback model: a directory, a hub name, or an endpoint's .toml (docs/feedback.md)."),
    ],
    constitution: Annotated[str, typer.Option(help="Constitution YAML.")],
    out: Annotated[Path, typer.Option(help="Directory of labels and preferences; an earlier start continues in it.")],
    policy: Annotated[str, typer.Option(help="Model that writes answers to prompts without any.")] = "",
    max_labels: Annotated[
        int | None, typer.Option(min=1, help="Largest number of labels to make in this start.")
    ] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Largest amount to spend in this start, USD.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As in feedback.template=compact or judging.threads=2."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn prompts and answers into a preference data set. Needs no training run; a repeated start continues."""
    from solon.cli.label import run_label
    from solon.cli.label_settings import LabelRequest

    refuse_working_copy(out, "--out")
    request = LabelRequest(
        source=source,
        judge=judge,
        constitution=constitution,
        out=out,
        policy=policy,
        max_labels=max_labels,
        max_usd=max_usd,
        overrides=overrides or [],
    )
    summary = run_label(request, as_json=as_json)
    print_result(summary, as_json)
    if "failure" in summary:
        raise RunFailedError(summary["failure"])


@stages_app.command()
def revise(
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help="Prompts to answer.", show_default=False)],
    policy: Annotated[str, typer.Option(help="The model that answers, criticises and revises.")],
    constitution: Annotated[str, typer.Option(help="Constitution YAML with critique and revision requests.")],
    out: Annotated[Path, typer.Option(help="New directory of demonstrations, preferences and transcripts.")],
    max_prompts: Annotated[int, typer.Option(min=1, help="The first prompts of the file.")] = 256,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a policy revise its own answers by a constitution: the supervised part of Constitutional AI."""
    from solon.cli.revise import run_revise

    summary = run_revise(
        prompts,
        policy=policy,
        constitution=constitution,
        out=out,
        max_prompts=max_prompts,
        overrides=overrides or [],
        as_json=as_json,
    )
    print_result(summary, as_json)


@stages_app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Policies: directories, runs, names. The first is the baseline.",
            show_default=False,
        ),
    ],
    prompts: Annotated[str, typer.Option(help="Held-out prompts.")],
    out: Annotated[Path, typer.Option(help="Directory of evaluation.json, evaluation.html and answers.jsonl.")],
    judge: Annotated[str, typer.Option(help="Judge of the answers; not the one that labelled for training.")] = "",
    constitution: Annotated[str, typer.Option(help="Constitution YAML of the judge.")] = "",
    evaluator: Annotated[str, typer.Option(help="`nursery` or `english`: programs in place of a judge.")] = "",
    max_prompts: Annotated[int, typer.Option(min=2, help="The first prompts of the file.")] = 256,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Answers to each prompt.")] = 1,
    by: Annotated[
        str,
        typer.Option(
            metavar="TAG", help="Also scores of the prompts under each tag TAG:…, such as attack.", show_default=False
        ),
    ] = "",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare policies on held-out prompts: principles, preferences, degenerate answers, with paired intervals."""
    from solon.cli.evaluate import EvaluateRequest, run_evaluate

    request = EvaluateRequest(
        models=models,
        prompts=prompts,
        out=out,
        evaluator=evaluator,
        judge=judge,
        constitution=constitution,
        max_prompts=max_prompts,
        samples=samples,
        by=by,
        overrides=overrides or [],
    )
    print_result(run_evaluate(request, as_json=as_json), as_json)


@stages_app.command()
def attacks(
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help="Harmful prompts.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New JSONL file.")],
    kinds: Annotated[
        str, typer.Option(metavar="KIND,KIND", help="Some of the attacks; else all.", show_default=False)
    ] = "",
    max_prompts: Annotated[int, typer.Option(min=1, help="The first prompts of the file.")] = 256,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rephrase harmful prompts as attackers do: prefix injection, role play, many-shot, obfuscation, persuasion."""
    from solon.cli.attacks import run_attacks

    result = run_attacks(
        prompts, out=out, kinds=kinds, max_prompts=max_prompts, overrides=overrides or [], as_json=as_json
    )
    print_result(result, as_json)


@stages_app.command()
def tasks(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A policy: directory, run, name.", show_default=False)],
    harness: Annotated[Literal["lm-eval", "inspect"], typer.Option(help="The program that has the tasks.")],
    names: Annotated[str, typer.Option("--tasks", metavar="TASK,TASK", help="Names, or files of Inspect tasks.")],
    out: Annotated[Path, typer.Option(help="New directory of tasks.json and logs.")],
    python: Annotated[
        str, typer.Option("--harness-python", metavar="PYTHON", help="Interpreter that has it.", show_default=False)
    ] = "",
    url: Annotated[
        str, typer.Option(metavar="URL", help="Of a server that runs already; else one is started.", show_default=False)
    ] = "",
    served_name: Annotated[str, typer.Option(help="The model's name at that server.")] = "policy",
    limit: Annotated[int | None, typer.Option(min=1, help="First examples of each task.", show_default=False)] = None,
    chat: Annotated[bool, typer.Option("--chat", help="lm-eval: through the chat template.")] = False,
    more: Annotated[
        str, typer.Option(metavar="ARGUMENTS", help="Further arguments of the harness.", show_default=False)
    ] = "",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a policy on tasks of lm-evaluation-harness or Inspect, through a server on this machine."""
    from solon.cli.tasks import TasksRequest, run_tasks

    request = TasksRequest(
        model=model,
        harness=harness,
        tasks=names,
        out=out,
        python=python,
        url=url,
        served_name=served_name,
        limit=limit,
        chat=chat,
        more=more,
        overrides=overrides or [],
    )
    print_result(run_tasks(request, as_json=as_json), as_json)


@stages_app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A directory or a hub name.", show_default=False)],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Number format of weights and cache.")
    ] = "bfloat16",
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a sequence; else the model's context.", show_default=False),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 64,
    on_cpu: Annotated[bool, typer.Option("--cpu", help="Estimate memory on a CPU.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a model's sizes, key-value cache and memory by role. Loads nothing."""
    from solon.cli.inspect import run_inspect

    result = run_inspect(model, dtype=dtype, length=length, concurrency=concurrency, on_gpu=not on_cpu, as_json=as_json)
    print_result(result, as_json)
