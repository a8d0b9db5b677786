"""What is submitted: a checked run file or alignment file, its command on the cluster, and the job's environment."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import solon
from cluster.align.file import AlignFile
from cluster.pipeline_file import load_run
from cluster.submission.paths import Named, named_paths
from solon.errors import InputError, short
from solon.files.marks import NamesFile, NamesModel, values
from solon.files.toml_file import read_toml
from solon.host.submitted_job import REQUIRED
from solon.models.given_names import is_given_name
from solon.redaction import places_of_secrets

MODULE = "solon"
"""What the job runs."""
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Environment variable of the job: seconds between SIGTERM and SIGKILL."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(?i)token|secret|passw|credential|api_?key|_key$|^key$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run to submit, checked as far as this machine can."""

    kind: str
    """`train` or `align`."""
    file: str
    """The path within the working directory."""
    name: str
    """Of the run: a repeated submission continues it."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the command."""
    runs: str
    """The folder of run directories, on the cluster."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job; no secrets."""
    required: tuple[str, ...] = ()
    """Names of variables that the cluster's machines must have."""
    stop_wait_s: int = 120

    @property
    def entrypoint(self) -> str:
        """The command line of the job."""
        return shlex.join(["python", "-m", MODULE, self.kind, self.file, "--name", self.name, *self.arguments])

    @property
    def results(self) -> str:
        """The run directory, on the cluster."""
        return str(PurePosixPath(self.runs) / self.name)

    def environment(self) -> dict[str, str]:
        """The variables of the job."""
        required = {REQUIRED: ",".join(self.required)} if self.required else {}
        return {**self.variables, **required, "SOLON_RUNS": self.runs, STOP_WAIT: str(self.stop_wait_s)}

    def metadata(self, attempt: int) -> dict[str, str]:
        """What the cluster keeps of it, for `solon jobs`; texts only, as Ray asks."""
        return {
            "solon": solon.__version__,
            "solon_kind": self.kind,
            "solon_run": self.name,
            "solon_attempt": str(attempt),
            "solon_file": self.file,
            "solon_arguments": json.dumps(self.arguments),
            "solon_runs": self.runs,
            "solon_variables": json.dumps(dict(self.variables)),
            "solon_required": ",".join(self.required),
            "solon_stop_wait_s": str(self.stop_wait_s),
        }

    @classmethod
    def of_job(cls, job: str, metadata: Mapping[str, str]) -> Request:
        """The request of an earlier job. Raises InputError for a job that Solon did not submit."""
        try:
            return cls(
                kind=metadata["solon_kind"],
                file=metadata["solon_file"],
                name=metadata["solon_run"],
                arguments=tuple(json.loads(metadata["solon_arguments"])),
                runs=metadata["solon_runs"],
                variables=json.loads(metadata["solon_variables"]),
                required=tuple(name for name in metadata["solon_required"].split(",") if name),
                stop_wait_s=int(metadata["solon_stop_wait_s"]),
            )
        except (KeyError, ValueError):
            raise InputError(
                f"the job {job} was not submitted by `solon submit`, expected one that was; submit the run again with "
                "the name that it has"
            ) from None


def kind_of(path: Path) -> str:
    """`train` or `align`, by the content of the file. Raises InputError."""
    raw = read_toml(path, what="run file")
    if "methods" in raw:
        raise InputError(f"{path} is a comparison file, expected a run file or an alignment file; run it in a "
                         f"terminal of the cluster: solon compare {path}")  # fmt: skip
    return "align" if "stages" in raw and "pools" not in raw else "train"


def make_request(
    path: Path,
    *,
    folder: Path,
    name: str | None,
    steps: int | None,
    seed: int | None,
    overrides: Sequence[str],
    runs: str,
    variables: Sequence[str],
    required: Sequence[str],
    stop_wait_s: int,
) -> tuple[Request, list[Named]]:
    """The request, and the paths that the file names. Raises InputError, before anything is sent.

    folder: the working directory; paths in `overrides` are relative to it, as they will be on the cluster.
    """
    file, inner = _within(path, folder)
    kind = kind_of(file)
    if kind == "align" and (steps is not None or seed is not None):
        raise InputError("--steps and --seed are of runs, got an alignment file; set them in the file, or --set seed=1")
    with contextlib.chdir(folder):
        paths = _paths_in_file(kind, file, overrides)
    for place in places_of_secrets(list(overrides)):
        raise InputError(f"--set {place} holds what looks like a secret, which everybody who sees the job could read; "
                         "use an environment variable of the cluster's machines")  # fmt: skip
    chosen = name if name is not None else _default_name(file, kind)
    if not _NAME.fullmatch(chosen):
        raise InputError(
            f"--name got {short(chosen)}, expected 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter "
            "or digit; choose another name"
        )
    arguments = [part for key, value in (("--steps", steps), ("--seed", seed)) if value is not None
                 for part in (key, str(value))]  # fmt: skip
    arguments += [part for one in overrides for part in ("--set", one)]
    request = Request(
        kind=kind,
        file=inner,
        name=chosen,
        arguments=tuple(arguments),
        runs=_runs(runs, folder),
        variables=dict(_variable(one) for one in variables),
        required=tuple(dict.fromkeys([*map(_variable_name, required), *_keys_of_endpoints(paths)])),
        stop_wait_s=stop_wait_s,
    )
    return request, named_paths(paths, file, overrides=overrides, folder=folder)


def _within(path: Path, folder: Path) -> tuple[Path, str]:
    file = path.absolute()
    if not file.is_file():
        raise InputError(f"run file {path} does not exist; check the path")
    try:
        return file, str(file.resolve().relative_to(folder.resolve()))
    except ValueError:
        raise InputError(
            f"run file {path} lies outside the folder {folder} that is uploaded; start in a folder that holds it, or "
            "name it: --working-dir"
        ) from None


def _paths_in_file(kind: str, file: Path, overrides: Sequence[str]) -> list[str]:
    """Models and files that a file names, as absolute paths where they are paths. Raises InputError."""
    if kind == "align":
        align = AlignFile.load(file, overrides=overrides)
        found = [one.path for n in range(len(align.stages)) for one in align.sources(n).values() if one.path]
    else:
        run = load_run(file, overrides=overrides)
        found = [*values(run, NamesModel), *values(run, NamesFile)]
    return sorted({value for value in found if value and not is_given_name(value)})


def _default_name(file: Path, kind: str) -> str:
    """As without a cluster: each run has a folder of its own, and an alignment continues in its folder."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", file.stem).lstrip(".-_")[:60] or "run"
    return stem if kind == "align" else f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _runs(given: str, folder: Path) -> str:
    if not given:
        raise InputError(
            "got no folder for run directories, expected one on a disk that all nodes share and that outlives the job: "
            "--runs /shared/runs, or set SOLON_RUNS"
        )
    if not PurePosixPath(given).is_absolute():
        raise InputError(
            f"--runs is {short(given)}, expected an absolute path: the job works in a copy of {folder}, which is "
            "removed after the job"
        )
    return str(PurePosixPath(given))


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--env got {short(text)}, expected NAME=VALUE; a variable that the cluster's machines have "
                         "is named with --require-env")  # fmt: skip
    _variable_name(name)
    if _SECRET.search(name) or any(places_of_secrets(value)):
        raise InputError(
            f"--env {name} looks like a secret, and everybody who sees the job could read its value; set it on the "
            f"cluster's machines, where Ray is started, and name it: --require-env {name}"
        )
    if name in (STOP_WAIT, "SOLON_RUNS", REQUIRED):
        raise InputError(f"--env {name} is set by other options; use --runs, --grace or --require-env")
    return name, value


def _variable_name(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise InputError(f"got {short(name)}, expected the name of an environment variable, as in WANDB_API_KEY")
    return name


def _keys_of_endpoints(paths: Collection[str]) -> Iterator[str]:
    """Variables with the keys of judges that are endpoints: the judges run on the cluster."""
    for value in paths:
        path = Path(value)
        if path.suffix == ".toml" and path.is_file():
            name: Any = read_toml(path, what="endpoint").get("api_key_env")
            if isinstance(name, str) and _VARIABLE.fullmatch(name):
                yield name
