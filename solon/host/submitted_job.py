"""A run started by `ray job submit`. It works in a copy of a folder, which Ray removes afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solon.errors import InputError

_COPIES = ("runtime_resources", "working_dir_files")
"""Subfolders of a Ray session."""


def is_submitted_job() -> bool:
    """Whether `ray job submit` started this process. It may do so again, for example after losing its cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def is_working_copy(path: Path) -> bool:
    """Whether a path lies in such a copy, on any machine."""
    return within_working_copy(path) is not None


def within_working_copy(path: Path) -> Path | None:
    """A path relative to such a copy, which has another name whenever a file of the folder changes; None: it lies in no
    copy."""
    parts = path.parts
    found = (at for at in range(len(parts) - 1) if parts[at : at + 2] == _COPIES)
    return next((Path(*parts[at + 3 :]) for at in found), None)


def in_any_copy(value: Any) -> Any:
    """A setting, or settings, with the same text for a path in every such copy: `working_dir:models/llama`."""
    if isinstance(value, Mapping):
        return {key: in_any_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [in_any_copy(item) for item in value]
    within = within_working_copy(Path(value)) if isinstance(value, str) else None
    return value if within is None else f"working_dir:{within}"


def refuse_working_copy(
    path: Path, what: str, *, remedy: str = "give an absolute path on a disk that outlives the job"
) -> None:
    """Raises InputError for an output path that would be removed with the copy."""
    if is_working_copy(path.absolute()) or is_working_copy(path.resolve()):
        raise InputError(
            f"{what} {path.absolute()} lies in Ray's copy of the submitted working directory, which is removed after "
            f"the job; {remedy}"
        )


REQUIRED = "SOLON_REQUIRED_ENV"
"""Environment variable: names of those that the machines of a submitted job must have, with commas between them."""


def required_variables() -> list[str]:
    """Names in `REQUIRED`; empty for a run that was not submitted."""
    return [name for name in os.environ.get(REQUIRED, "").split(",") if name]


def missing_variables() -> list[str]:
    """Names in `REQUIRED` that this process does not have."""
    return [name for name in required_variables() if not os.environ.get(name)]


def require_variables() -> None:
    """Raises InputError where a variable is missing that the submission named: its value is not sent with a job."""
    if missing := missing_variables():
        raise InputError(
            f"the environment of this job lacks {', '.join(missing)}, which the submission asks for; set it where Ray "
            "is started, on every machine of the cluster"
        )


SUBMISSION = "SOLON_SUBMISSION"
"""Environment variable: the id of the job that `solon submit` made, which `solon jobs` takes."""


def submission() -> str:
    """That id; empty for a run that was started in another way."""
    return os.environ.get(SUBMISSION, "") if is_submitted_job() else ""
