"""`solon train` and `solon demo`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.cli.names import uses_names, with_paths
from solon.cli.view import make_view
from solon.host.processor import computes_bfloat16
from solon.host.submitted_job import is_submitted_job, refuse_working_copy, submission

if TYPE_CHECKING:
    from cluster.pools.base import Role

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BFLOAT16 = ("rollout.dtype=bfloat16", "learn.dtype=bfloat16")
"""Settings for a processor with bfloat16 arithmetic."""


def run_train(
    path: Path,
    *,
    name: str | None,
    steps: int | None,
    seed: int | None,
    overrides: list[str],
    as_json: bool,
    resume: bool | None = None,
    back_to: str = "",
    roles: Mapping[str, Role] | None = None,
    num_answers: int = 0,
) -> dict[str, Any]:
    """Loads the run file, grows the models that it needs, trains. Returns the summary.

    resume=None: a submitted job with a name continues an earlier attempt; others begin at the first step. back_to:
    `best` or a step, for a run that goes back to an earlier checkpoint and resumes there. roles: factories of the
    workers, in place of those in `cluster/pools/`. num_answers: held-out answers shown at the end.
    """
    from cluster.pipeline_file import load_run

    root = runs_folder()
    run = load_run(path, overrides=overrides)
    changes = {key: value for key, value in (("steps", steps), ("seed", seed)) if value is not None}
    run = run.model_copy(update=changes)
    if uses_names(run):
        run = with_paths(run, progress=not as_json)
    # Before Ray is imported: processes that it starts inherit this.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from cluster.train import train

    if resume is None:
        resume = bool(back_to) or (name is not None and is_submitted_job())
    return train(
        run,
        name=name,
        # The config.json of a run denotes that run.
        default_name=path.resolve().parent.name if path.name == "config.json" else path.stem,
        root=root,
        view=make_view(quiet=as_json, num_answers=num_answers),
        resume=resume,
        back_to=back_to,
        origin=describe_origin(path, steps=steps, seed=seed, overrides=overrides),
        roles=roles,
    )


def runs_folder() -> Path:
    """The folder of run directories. Raises InputError when a submitted job's end would remove it."""
    root = Path(os.environ.get("SOLON_RUNS", "runs")).absolute()
    refuse_working_copy(
        root,
        "the folder of run directories",
        remedy="name one that outlives the job: ray job submit --working-dir . -- env SOLON_RUNS=/shared/runs solon "
        "train RUN.toml (a variable in front of `ray job submit` does not reach the job)",
    )
    return root


def describe_origin(path: Path, *, steps: int | None, seed: int | None, overrides: list[str]) -> dict[str, Any]:
    """How this run was started: its command without a name, its folder, and whether as a submitted job."""
    command = ["solon", "train", str(path)]
    for key, value in (("--steps", steps), ("--seed", seed)):
        command += [key, str(value)] if value is not None else []
    for override in overrides:
        command += ["--set", override]
    found = {"command": command, "folder": str(Path.cwd()), "is_job": is_submitted_job()}
    return found | ({"submission": job} if (job := submission()) else {})


def run_demo(
    *,
    english: bool = False,
    steps: int | None,
    seed: int | None,
    as_json: bool,
    roles: Mapping[str, Role] | None = None,
) -> dict[str, Any]:
    """A demo is an ordinary run of an ordinary run file. english: SmolLM2 in English, with answers shown at the end."""
    if not english:
        path = EXAMPLES / "nursery.toml"
        return run_train(path, name=None, steps=steps, seed=seed, overrides=[], as_json=as_json, roles=roles)
    overrides = list(BFLOAT16) if computes_bfloat16() else []
    path = EXAMPLES / "english.toml"
    return run_train(
        path, name=None, steps=steps, seed=seed, overrides=overrides, as_json=as_json, roles=roles, num_answers=5
    )
