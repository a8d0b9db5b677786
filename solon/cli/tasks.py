"""`solon tasks MODEL --harness lm-eval --tasks arc_easy`: known tasks of other programs against a served policy."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solon.cli.names import resolver
from solon.cli.tables import print_table
from solon.engines.base import EngineOptions
from solon.engines.lengths import engine_config
from solon.engines.openai_server import SERVED_NAME, served, without_proxy
from solon.errors import InputError, RunFailedError
from solon.evaluation.harness import HARNESSES, Harness, Job, Score
from solon.files.json_text import json_text
from solon.files.overrides import settings_from
from solon.files.whole_file import write_whole
from solon.host.processes import failure_of

RESULT = "tasks.json"


class TaskSettings(BaseModel):
    """Every setting that `--set` can change: `--set engine.max_model_len=4096`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: EngineOptions = EngineOptions()
    """Of the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksRequest:
    """The arguments of the command line."""

    model: str
    harness: str
    tasks: str
    out: Path
    python: str = ""
    """Interpreter that has the harness; empty: this one."""
    url: str = ""
    """Of a server that runs already, with `served_name`."""
    served_name: str = SERVED_NAME
    """At that server."""
    limit: int | None = None
    chat: bool = False
    more: str = ""
    overrides: Sequence[str] = ()


def run_tasks(request: TasksRequest, *, as_json: bool) -> dict[str, Any]:
    """Serve the policy, let the harness evaluate it, and collect its scores. Raises InputError, RunFailedError."""
    from cluster.preflight.checks import check_model
    from cluster.side_by_side import policy_of

    settings = settings_from(TaskSettings, {}, request.overrides)
    harness, python = HARNESSES[request.harness], request.python or sys.executable
    _require(harness, python, request.harness)
    tasks = [name.strip() for name in request.tasks.split(",") if name.strip()]
    if not tasks:
        raise InputError("--tasks is empty, expected names of tasks with commas between them")
    more = _arguments(request.more)
    model = policy_of(resolver([request.model], progress=not as_json)(request.model))
    url, name, length = request.url.rstrip("/").removesuffix("/v1"), request.served_name, None
    if not url:
        check_model(model, role="policy", opt_in="engine", trusted=settings.engine.trust_remote_code)
    _make_folder(request.out)
    console = Console(highlight=False, quiet=as_json, soft_wrap=True)
    with ExitStack() as stack:
        if not url:
            console.print(f"starting a server for {request.model}", markup=False)
            config = engine_config(model, settings.engine)
            name, length = SERVED_NAME, config.max_model_len
            url = stack.enter_context(served(config, on_gpu=_on_gpu(), log=request.out / "server.log"))
        job = Job(
            url=url,
            served_name=name,
            max_length=length,
            tokenizer=model,
            tasks=tasks,
            out=(request.out / request.harness).absolute(),
            limit=request.limit,
            chat=request.chat,
            more=more,
        )
        console.print(f"{request.harness} evaluates {', '.join(tasks)}", markup=False)
        _run(harness, python, job, request.out / "harness.log")
    scores = harness.read(job.out)
    result = {"model": request.model, "harness": request.harness, "scores": [asdict(one) for one in scores]}
    write_whole(request.out / RESULT, json_text(result, indent=1), what="scores")
    print_table(console, _table(scores))
    console.print(f"written to {request.out}: tasks.json", markup=False)
    return result


def _make_folder(out: Path) -> None:
    """Results of an earlier start must not pass for those of this one; what a failed start left is removed."""
    if (out / RESULT).exists() or (out.exists() and not out.is_dir()):
        raise InputError(f"--out {out} exists, expected a new directory; choose another")
    try:
        for name in HARNESSES:
            shutil.rmtree(out / name, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be used: {error.strerror}; choose another directory") from None


def _require(harness: Harness, python: str, name: str) -> None:
    """Raises InputError where the interpreter does not have the harness."""
    asks = f"import importlib.util as u, sys; sys.exit(3 if None in map(u.find_spec, {harness.needs!r}) else 0)"
    try:
        code = subprocess.run(
            [python, "-c", asks], check=False, capture_output=True, timeout=60, env=_variables()
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"--harness-python {python} cannot be run: {error}; name a Python interpreter") from None
    if code not in (0, 3):
        raise InputError(f"--harness-python {python} ended with exit code {code}; name a Python interpreter")
    if code:
        raise InputError(
            f"{name} is not installed for {python}, expected it there; install it in an environment of its own "
            f"(python -m venv harness; harness/bin/pip install {shlex.join(harness.package.split())}) and name it: "
            "--harness-python harness/bin/python"
        )


def _run(harness: Harness, python: str, job: Job, log: Path) -> None:
    command = [python, "-m", *harness.arguments(job)]
    variables = without_proxy({**_variables(), **harness.variables(job)})
    with log.open("w", encoding="utf-8") as output:
        ended = subprocess.run(
            command,
            cwd=harness.folder(job),
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ended.returncode:
        raise RunFailedError(f"the harness {failure_of(ended.returncode, log)}; its log is {log}")


def _arguments(more: str) -> list[str]:
    try:
        return shlex.split(more)
    except ValueError as error:
        raise InputError(f"--more {more!r} cannot be split into arguments: {error}; quote it") from None


def _variables() -> dict[str, str]:
    """The environment of another Python: not this one's packages, and nothing imported from the current folder."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**own, "PYTHONSAFEPATH": "1"}


def _on_gpu() -> bool:
    from solon.engines.device import vllm_build

    return vllm_build() == "gpu"


def _table(scores: Sequence[Score]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("task", "metric", "value", "standard error"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for one in scores:
        table.add_row(one.task, one.metric, f"{one.value:.3f}", "" if one.stderr is None else f"{one.stderr:.3f}")
    return table
