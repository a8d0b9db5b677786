"""Programs of others that evaluate a served model on known tasks: how they are called, and what they found.

    lm-eval   EleutherAI's lm-evaluation-harness (`local-completions`, or `local-chat-completions` with a chat template)
    inspect   the UK AI Security Institute's Inspect (`openai-api`)

Both have many dependencies: they run by a Python of their own (`python -m venv`), and talk to the model's server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.errors import InputError, RunFailedError

UNUSED = "none"
"""Clients want a key, and the server asks for none."""
CONCURRENT = 8
"""Requests at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One figure of a task."""

    task: str
    metric: str
    value: float
    stderr: float | None
    """As the program computes it; None: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a harness is asked."""

    url: str
    """`http://127.0.0.1:8000`, without a path."""
    served_name: str
    tokenizer: str
    """Directory or hub name: lm-eval counts the tokens of choices."""
    tasks: Sequence[str]
    out: Path
    max_length: int | None = None
    """Tokens of the server's context; None: not known."""
    limit: int | None = None
    """The first examples of each task."""
    chat: bool = False
    """Through the model's chat template."""
    more: Sequence[str] = ()
    """Further arguments of the harness's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """One program."""

    needs: tuple[str, ...]
    """Modules that its Python must have."""
    package: str
    """What pip installs."""
    arguments: Callable[[Job], list[str]]
    """Behind `python -m`."""
    variables: Callable[[Job], dict[str, str]]
    read: Callable[[Path], list[Score]]
    folder: Callable[[Job], Path | None] = lambda _: None
    """Where it must be started; None: anywhere."""


def _lm_eval_arguments(job: Job) -> list[str]:
    kind, path = ("local-chat-completions", "chat/completions") if job.chat else ("local-completions", "completions")
    model = f"model={job.served_name},base_url={job.url}/v1/{path},num_concurrent={CONCURRENT},max_retries=3"
    model += "" if job.chat else f",tokenizer={job.tokenizer}"
    # Its default of 2,048 would cut longer contexts and send ones that the server refuses.
    model += f",max_length={job.max_length}" if job.max_length and not job.chat else ""
    found = ["lm_eval", "--model", kind, "--model_args", model, "--tasks", ",".join(job.tasks)]
    found += ["--output_path", str(job.out)]
    found += ["--apply_chat_template"] if job.chat else []
    return [*found, *(["--limit", str(job.limit)] if job.limit else []), *job.more]


def _lm_eval_scores(out: Path) -> list[Score]:
    found = []
    for task, figures in _newest(out, "results_*.json")["results"].items():
        for name, value in figures.items():
            metric, _, variant = name.partition(",")
            if variant and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = figures.get(f"{metric}_stderr,{variant}")
                shown = metric if variant == "none" else f"{metric} ({variant})"
                stderr = float(error) if isinstance(error, int | float) else None
                found.append(Score(task=task, metric=shown, value=float(value), stderr=stderr))
    return found


def _inspect_folder(job: Job) -> Path | None:
    """Inspect takes files below the current folder only. Raises InputError for files in several folders."""
    files = [path for task in job.tasks if (path := Path(task.partition("@")[0])).exists()]
    folders = {path.absolute().parent for path in files}
    if len(folders) > 1:
        raise InputError(f"got tasks in {len(folders)} folders, expected one; evaluate them one after the other")
    return folders.pop() if folders else None


def _inspect_arguments(job: Job) -> list[str]:
    tasks = [Path(task).name if Path(task.partition("@")[0]).exists() else task for task in job.tasks]
    found = ["inspect_ai", "eval", *tasks, "--model", f"openai-api/solon/{job.served_name}"]
    found += ["--log-dir", str(job.out), "--log-format", "json", "--display", "plain"]
    found += ["--max-connections", str(CONCURRENT)]
    return [*found, *(["--limit", str(job.limit)] if job.limit else []), *job.more]


def _inspect_scores(out: Path) -> list[Score]:
    found = []
    for path in sorted(out.glob("*.json")):
        log = _json(path)
        if not isinstance(log, Mapping) or "eval" not in log:
            continue
        if log.get("status") != "success":
            raise RunFailedError(
                f"inspect ended the task {log['eval'].get('task')} as {log.get('status')}; read {path}"
            )
        for score in (log.get("results") or {}).get("scores", ()):
            metrics = score.get("metrics", {})
            error = metrics.get("stderr", {}).get("value")
            found += [
                Score(
                    task=log["eval"]["task"],
                    metric=f"{score['name']} {name}",
                    value=one["value"],
                    stderr=error if name in ("accuracy", "mean") else None,
                )
                for name, one in metrics.items()
                if name != "stderr"
            ]
    if not found:
        raise RunFailedError(f"inspect wrote no scores into {out}; read its log")
    return found


HARNESSES: Mapping[str, Harness] = {
    "lm-eval": Harness(
        needs=("lm_eval", "transformers"),
        package="lm-eval[api] transformers",
        arguments=_lm_eval_arguments,
        variables=lambda _: {"OPENAI_API_KEY": UNUSED},
        read=_lm_eval_scores,
    ),
    "inspect": Harness(
        needs=("inspect_ai", "openai"),
        package="inspect-ai openai",
        arguments=_inspect_arguments,
        variables=lambda job: {"SOLON_API_KEY": UNUSED, "SOLON_BASE_URL": f"{job.url}/v1"},
        read=_inspect_scores,
        folder=_inspect_folder,
    ),
}


def _newest(out: Path, pattern: str) -> dict[str, Any]:
    found = sorted(out.rglob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RunFailedError(f"lm-eval wrote no results into {out}; read its log")
    result: dict[str, Any] = _json(found[-1])
    return result


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFailedError(f"{path} cannot be read as JSON: {error}") from None
