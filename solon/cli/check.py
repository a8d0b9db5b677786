"""`solon check`: reads all inputs of a run and starts nothing; on request, puts the constitution's tests to the
judge."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.cli.label_settings import model_name
from solon.cli.names import is_constitution_name, resolver, uses_names, with_paths
from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig, EngineOptions
from solon.engines.lengths import engine_config
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import Source
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.judge_file import load_judge_file
from solon.files.overrides import settings_from

if TYPE_CHECKING:
    from cluster.placement.memory import RoleMemory
    from solon.feedback.trials.constitution_tests import TestResult


class CheckSettings(BaseModel):
    """The settings that `--set` can change without a run file: `--set feedback.template=compact`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feedback: FeedbackConfig = FeedbackConfig(task="pairwise")
    judging: EngineOptions = EngineOptions()

    @classmethod
    def of(cls, overrides: Sequence[str]) -> CheckSettings:
        """Defaults with overrides. Raises InputError."""
        return settings_from(cls, {"feedback": {"task": "pairwise"}}, overrides)


def run_check(
    path: str | Path,
    *,
    overrides: list[str],
    as_json: bool,
    with_tests: bool = False,
    judge: str = "",
    device_gib: float | None = None,
) -> dict[str, Any]:
    """Raises InputError for the first problem. Returns a report.

    with_tests: put the constitution's unit tests to the judge; their results are under `tests`. judge: the model to
    ask, in place of the run file's. device_gib: memory of the GPU that the run is for.
    """
    if is_constitution(path):
        return _check_constitution(str(path), overrides=overrides, as_json=as_json, with_tests=with_tests, judge=judge)
    if judge:
        overrides = [*overrides, f"judge={json.dumps(judge)}"]
    return _check_run(Path(path), overrides=overrides, as_json=as_json, with_tests=with_tests, device_gib=device_gib)


def is_constitution(path: str | Path) -> bool:
    """Whether a name denotes a constitution; any other is a run file."""
    return is_constitution_name(str(path)) or Path(path).suffix.lower() in (".yaml", ".yml")


def _check_run(
    path: Path, *, overrides: list[str], as_json: bool, with_tests: bool, device_gib: float | None
) -> dict[str, Any]:
    from cluster.config.fitting import fit_run, own_cpus, too_large_for_here
    from cluster.pipeline_file import load_run
    from cluster.placement.memory import device_memory, estimate, machine_memory, too_much
    from cluster.preflight.checks import check_inputs
    from cluster.preflight.space import remarks_on_space

    run = load_run(path, overrides=overrides)
    if uses_names(run):
        run = with_paths(run, progress=not as_json)
    run, fitted = fit_run(run, cpus=own_cpus())
    show = _Show(quiet=as_json)
    inputs = check_inputs(run, say=show.line)
    large = too_large_for_here(run)
    space = remarks_on_space(run, Path(os.environ.get("SOLON_RUNS", "runs")))
    device = device_memory(device_gib)
    roles = estimate(run, device=device)
    warnings = [
        *inputs.warnings,
        *([large] if large else []),
        *space,
        *too_much(run, roles, device=device, ram=machine_memory()),
    ]
    result = {
        "run_file": str(path),
        "config_hash": run.hash,
        **_describe(inputs.constitution),
        "prompts": len(inputs.prompts),
        "heldout_prompts": len(inputs.heldout),
        "prompt_counts": inputs.counts,
        "needs": {"cpus": run.cpus, "gpus": run.gpus},
        "memory": {
            "device_gib": None if device is None else round(device / 2**30, 3),
            "actors": [role.as_json() for role in roles],
        },
        "notes": [*fitted, *inputs.notes],
        "warnings": warnings,
    }
    for note in (*fitted, *inputs.notes):
        show.line(f"note: {note}")
    show.memory(roles, device if run.gpus else None, on_gpu=run.gpus > 0)
    show.warn(warnings)
    show.line(
        f"{path}: good. {len(inputs.prompts)} prompts, {len(inputs.constitution.principles)} principles of "
        f"{inputs.constitution.id!r}; needs {run.cpus:g} CPU(s) and {run.gpus:g} GPU(s) of a cluster."
    )
    if with_tests:
        engine = run.judging.engine(run.judge, seed=run.seed)
        result["tests"] = _test(inputs.constitution, _source(engine), run.feedback, show)
    return result


def _check_constitution(
    name: str, *, overrides: list[str], as_json: bool, with_tests: bool, judge: str
) -> dict[str, Any]:
    settings = CheckSettings.of(overrides)
    if with_tests and not judge:
        raise InputError("--tests with a constitution needs a judge to ask, got none; name one with --judge MODEL")
    path = resolver([name, judge], progress=not as_json)
    constitution = Constitution.load(path(name))
    warnings = constitution.warnings()
    result = {"constitution_file": name, **_describe(constitution), "warnings": warnings}
    show = _Show(quiet=as_json)
    show.warn(warnings)
    show.line(
        f"{name}: good. {len(constitution.principles)} principles of {constitution.id!r} {constitution.version}, "
        f"{len(constitution.tests)} tests, hash {constitution.hash}."
    )
    if judge:
        from cluster.preflight.checks import check_judge

        judging, feedback = settings.judging, settings.feedback
        check_judge(
            path(judge),
            feedback.template,
            trusted=judging.trust_remote_code,
            options=judging,
            feedback=feedback,
            constitution=constitution,
        )
        source = _source(engine_config(path(judge), judging))
        result["tests"] = _test(constitution, source, settings.feedback, show)
    return result


def _describe(constitution: Constitution) -> dict[str, Any]:
    return {
        "constitution": constitution.id,
        "constitution_hash": constitution.hash,
        "principles": [principle.id for principle in constitution.principles],
    }


def _source(engine: EngineConfig) -> Source:
    """The judge for the tests: an endpoint, if its name is that of an endpoint file, or an engine."""
    if EndpointFile.names(engine.model):
        return load_judge_file(engine.model)
    from cluster.preflight.checks import check_model

    check_model(engine.model, role="judge", trusted=engine.trust_remote_code)
    return engine


def _test(constitution: Constitution, source: Source, feedback: FeedbackConfig, show: _Show) -> dict[str, Any]:
    if not constitution.tests:
        raise InputError(
            f"constitution {constitution.id!r} has no tests to run; add `tests` with prompt, a, b and expect"
        )
    constitution.for_task(feedback.task)
    model = source.endpoint.model if isinstance(source, EndpointFile) else model_name(source)
    show.line(f"asking {model}, {feedback.task}")
    results = asyncio.run(_ask(constitution, source, feedback))
    failed = sum(not result.passed for result in results)
    show.table(results)
    show.line(f"{len(results) - failed} of {len(results)} tests passed.")
    return {
        "judge": model,
        "task": feedback.task,
        "total": len(results),
        "failed": failed,
        "results": [result.as_row() for result in results],
    }


async def _ask(constitution: Constitution, source: Source, feedback: FeedbackConfig) -> list[TestResult]:
    from solon.feedback.judges.assembly import host_judge
    from solon.feedback.prompting.secret import nonce_secret
    from solon.feedback.trials.constitution_tests import run

    judge = host_judge(source, feedback, constitution, name="judge", secret=nonce_secret())
    try:
        await judge.start()
        return await run(constitution, judge, feedback.task, margin_clip=feedback.margin_clip)
    finally:
        await judge.close()


class _Show:
    """Text output; nothing with --json."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(highlight=False, quiet=quiet)

    def line(self, text: str) -> None:
        self._console.print(Text(visible(text)), soft_wrap=True)

    def warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self._console.print(Text(visible(f"warning: {warning}"), style="yellow"), soft_wrap=True)

    def memory(self, roles: Sequence[RoleMemory], device: int | None, *, on_gpu: bool) -> None:
        from cluster.placement.memory import table_rows

        known = "of unknown size; --device-gib says it" if device is None else f"{device / 2**30:.1f} GiB each"
        self.line(f"memory of one actor, GiB, estimated{f' (GPUs: {known})' if on_gpu else ''}:")
        table = Table(box=None, pad_edge=False)
        for title in ("role", "model", "actors", "on", "weights", "cache", "working", "runtime", "total"):
            table.add_column(title, no_wrap=True, justify="left" if title in ("role", "model") else "right")
        for row in table_rows(roles):
            table.add_row(*(Text(visible(cell)) for cell in row))
        self._console.print(table)

    def table(self, results: Sequence[TestResult]) -> None:
        table = Table(box=None, pad_edge=False, expand=True)
        for title in ("test", "principle", "expected", "got", "margin", ""):
            table.add_column(title, no_wrap=True, justify="right" if title == "margin" else "left")
        table.add_column("prompt", no_wrap=True, overflow="ellipsis", ratio=1)  # takes the rest of the line
        for result in results:
            principle = result.principles[0] if len(result.principles) == 1 else f"all {len(result.principles)}"
            table.add_row(
                str(result.number),
                Text(visible(principle)),
                result.expected,
                Text(visible(f"{result.got} ({result.detail})" if result.detail else result.got)),
                "-" if result.margin is None else f"{result.margin:+.2f}",
                Text("pass", style="green") if result.passed else Text("FAIL", style="bold red"),
                Text(visible(" ".join(result.prompt.split()))),
            )
        print_table(self._console, table)
