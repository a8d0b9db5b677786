"""Whether every machine on which workers of a run may be placed has the files that they read there, the folder that
they write to, and the variables that the submission asks for. Asked before anything is loaded, by a task a node.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.labels import matches
from cluster.config.run_file import RunFile
from solon.errors import InputError
from solon.host.submitted_job import required_variables

LOOK_TIMEOUT_S = 60.0
"""For all machines together."""
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node that exists."""

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a machine answers."""

    files: Mapping[str, str]
    """A digest of what lies at each path; empty: nothing."""
    lacks: Sequence[str]
    """Variables."""
    shared_memory: int
    """Bytes of /dev/shm; 0: there is none."""


def check_machines(run: RunFile, root: Path, *, ask: Callable[..., Mapping[str, Findings]] | None = None) -> list[str]:
    """Warnings. Raises InputError that names the machine and the path. root: the folder of run directories.

    Only models that are paths on the driver's machine are looked for. Machines that join later are not asked; what one
    of them lacks is the error of the worker that starts there.
    """
    machines = _machines()
    if len(machines) < 2:
        return []
    with _mark(root) as mark:
        reads = {machine.id: _reads(run, machine, mark) for machine in machines}
        names = {path: use for paths in reads.values() for path, use in paths.items()}
        expected = {path: _look((path,), ()).files[path] for path in names}
        found = (ask or _ask)({one.id: tuple(reads[one.id]) for one in machines}, required_variables())
    warnings = []
    for machine in machines:
        if (findings := found.get(machine.id)) is None:
            warnings.append(f"the machine {machine.address} did not answer within {LOOK_TIMEOUT_S:.0f} s: its files "
                            "are not checked")  # fmt: skip
            continue
        _refuse(machine, findings, expected, reads[machine.id], mark=mark, root=root)
        store = machine.resources.get("object_store_memory", 0.0)
        if 0 < findings.shared_memory < store:
            warnings.append(
                f"the machine {machine.address} has {findings.shared_memory / MIB:.0f} MiB in /dev/shm, expected at "
                f"least the {store / MIB:.0f} MiB of Ray's object store, which is on its disk now; start its "
                "container with a larger --shm-size"
            )
    return warnings


def _refuse(
    machine: Machine, found: Findings, expected: Mapping[str, str], reads: Mapping[str, str], *, mark: str, root: Path
) -> None:
    for path, use in reads.items():
        there = found.files[path]
        if there == expected[path]:
            continue
        if path == mark:
            raise InputError(
                f"the machine {machine.address}, where the learner may run, does not see the folder {root} of this "
                "machine, expected one that all share: the learner writes checkpoints there; set SOLON_RUNS to a "
                "shared disk, or learn.labels to machines that see it"
            )
        what = "other files in" if there else "no"
        raise InputError(
            f"the machine {machine.address} has {what} {path}, which {use} reads there, expected those of this "
            "machine; copy them, name a path on a shared disk, or keep its workers away from that machine with labels"
        )
    if found.lacks:
        raise InputError(
            f"the machine {machine.address} lacks {', '.join(found.lacks)} in the environment of its workers, which "
            "the submission asks for; set it where Ray is started there"
        )


def _machines() -> list[Machine]:
    return [
        Machine(
            id=one["NodeID"], address=str(one["NodeManagerAddress"]), resources=one["Resources"], labels=one["Labels"]
        )
        for one in ray.nodes()
        if one["Alive"]
    ]


def _reads(run: RunFile, machine: Machine, mark: str) -> dict[str, str]:
    """Paths that workers may read on a machine, and who reads them: those of pools whose workers fit there."""
    found = {}
    for pool in run.workers.values():
        asks, has = pool.placement, machine.resources
        fits = asks.num_cpus <= has.get("CPU", 0.0) and asks.num_gpus <= has.get("GPU", 0.0)
        if not pool.size or not fits or not matches(asks.labels, machine.labels):
            continue
        if pool.model and Path(pool.model).is_absolute() and Path(pool.model).exists():
            found[pool.model] = pool.section
        if pool.role == "learner":
            found[mark] = pool.section
    return found


@contextlib.contextmanager
def _mark(root: Path) -> Iterator[str]:
    """A file in the folder of run directories; its name exists nowhere else."""
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(prefix=".solon-", dir=root) as file:
            file.write(file.name.encode())
            file.flush()
            yield file.name
    finally:
        if made:
            with contextlib.suppress(OSError):  # another run has begun in it
                root.rmdir()


def _ask(paths: Mapping[str, Sequence[str]], variables: Sequence[str]) -> dict[str, Findings]:
    """The answers, by node."""
    # Sent by value, so that a machine without Solon can run it.
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_plain_look())
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(some, variables): node
        for node, some in paths.items()
    }
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_TIMEOUT_S)
    found = {}
    for answer in ready:
        with contextlib.suppress(ray.exceptions.RayError):  # the machine was lost while it was asked
            files, lacks, shared = ray.get(answer)
            found[asked[answer]] = Findings(files=files, lacks=lacks, shared_memory=shared)
    return found


def _look(paths: Sequence[str], variables: Sequence[str]) -> Findings:
    """On this machine."""
    files, lacks, shared = _plain_look()(paths, variables)
    return Findings(files=files, lacks=lacks, shared_memory=shared)


def _plain_look() -> Callable[..., tuple[dict[str, str], list[str], int]]:
    """A function that needs nothing but Python."""

    def look(paths: Sequence[str], variables: Sequence[str]) -> tuple[dict[str, str], list[str], int]:
        import hashlib
        import os

        def files_in(path: str) -> list[str]:
            if not os.path.isdir(path):  # noqa: PTH112
                return [path]
            return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names  # noqa: PTH118
                          if not name.startswith("."))  # fmt: skip

        def digest(path: str) -> str:
            # Names and sizes, and the begin of each file: all of a configuration, the header of weights.
            if not os.path.exists(path):  # noqa: PTH110
                return ""
            sums = hashlib.sha256()
            for file in files_in(path):
                with open(file, "rb") as stream:  # noqa: PTH123
                    begin = stream.read(2**20)
                sums.update(f"{os.path.relpath(file, path)} {os.path.getsize(file)} ".encode() + begin)  # noqa: PTH202
            return sums.hexdigest()

        def read(path: str) -> str:
            try:
                return digest(path)
            except OSError:
                return "cannot be read"

        try:
            room = os.statvfs("/dev/shm")
            shared = room.f_frsize * room.f_blocks
        except OSError:
            shared = 0
        return {path: read(path) for path in paths}, [one for one in variables if not os.environ.get(one)], shared

    return look
