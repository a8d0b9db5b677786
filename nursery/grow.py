"""Grow a nursery once, and find it again ever after.

    nursery = grow()
    nursery.policy, nursery.judge, nursery.constitution, nursery.train_prompts

What is grown depends on the sources of the nursery and on the versions of what they use, and lies in the
user's cache under a digest of both. It is built beside its place and renamed into it, under a lock, so that
two processes that want it at once grow it once and nobody ever sees half of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import platformdirs

from nursery import prompts
from nursery.language import CONSTITUTION_PATH, WordEncoder
from nursery.progress import LARGE_PARTS, Display
from solon.constitution.constitution import Constitution
from solon.errors import RunFailedError
from solon.feedback.prompting.prompts import COMPACT, JudgePrompts
from solon.host.processes import failure_of
from solon.records import Message

PACKAGES = ("torch", "transformers", "tokenizers", "llmcompressor", "compressed-tensors")
_SOURCES = Path(__file__).parent
_LANES = ("one", "two")
LARGE_REPORT = "grown.json"
"""In the large judge's own directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nursery:
    """Where everything lies, and what was measured when it was grown."""

    policy: Path
    judge: Path
    """int8, compressed-tensors."""
    judge_fp: Path
    """The same judge before it was quantised."""
    audit_judge: Path
    """Another family and size, for evaluation that never rewards."""
    large_judge: Path
    """Nine times the judge's size; not there before `grow_large_judge`."""
    constitution: Path
    train_prompts: Path
    heldout_prompts: Path
    report: dict[str, Any]

    @classmethod
    def at(cls, directory: Path) -> Nursery:
        """A nursery that has been grown in a directory."""
        return cls(
            policy=directory / "policy",
            judge=directory / "judge",
            judge_fp=directory / "judge_fp",
            audit_judge=directory / "audit_judge",
            large_judge=directory / "large_judge",
            constitution=directory / "constitution.yaml",
            train_prompts=directory / "train.jsonl",
            heldout_prompts=directory / "heldout.jsonl",
            report=json.loads((directory / "report.json").read_text(encoding="utf-8")),
        )


def grow(cache_dir: Path | None = None, *, progress: bool = True, seed: int = 0, effort: float = 1.0) -> Nursery:
    """The nursery of these sources: from the cache, or grown now, which takes minutes.

    Raises RunFailedError when a worker fails.
    """
    root = cache_dir or platformdirs.user_cache_path("solon")
    place = root / f"nursery-{fingerprint(seed=seed, effort=effort)}"
    if not place.exists():
        root.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_suffix(".lock")):
            if not place.exists():
                _build(place, Display(enabled=progress), seed=seed, effort=effort)
    return Nursery.at(place)


def grow_large_judge(nursery: Nursery, *, progress: bool = True, seed: int = 0, effort: float = 1.0) -> dict[str, Any]:
    """What is measured of the nursery's large judge; it is grown now where it is not there yet, which takes minutes.

    Raises RunFailedError when the worker fails.
    """
    place = nursery.large_judge
    if not place.exists():
        with _locked(place.with_suffix(".lock")):
            if not place.exists():
                display = Display(enabled=progress, parts=LARGE_PARTS, title="growing the nursery's large judge")
                _build_large(place, nursery.policy, display, seed=seed, effort=effort)
    found: dict[str, Any] = json.loads((place / LARGE_REPORT).read_text(encoding="utf-8"))
    return found


def fingerprint(*, seed: int, effort: float) -> str:
    """Digest of all that a grown nursery depends on."""
    digest = hashlib.sha256(f"{seed} {effort}".encode())
    for source in (*sorted(_SOURCES.glob("*.py")), CONSTITUTION_PATH):
        digest.update(source.read_bytes())
    digest.update(_layout().encode())
    for package in PACKAGES:
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()[:16]


def _layout() -> str:
    """What a judge reads, by example: its lessons depend on the layout of questions, not on the code that lays
    them out."""
    constitution = Constitution.load(CONSTITUTION_PATH)
    prompts = JudgePrompts(COMPACT, WordEncoder(), preamble=constitution.preamble)
    user, assistant = Message(role="user", content="the fox"), Message(role="assistant", content="the fox")
    turns = (user, assistant, user)
    return repr(
        [
            (prompts.pair_ids, prompts.bool_ids),
            [prompts.pairwise(turns, "gladly", "it is red", p.pairwise_question) for p in constitution.principles],
            [prompts.pointwise(turns, "it is red", p.pointwise_question) for p in constitution.principles],
        ]
    )


def _build(place: Path, display: Display, *, seed: int, effort: float) -> None:
    started = time.monotonic()
    with _scratch(place) as scratch:
        directory = scratch / "nursery"
        directory.mkdir()
        shutil.copyfile(CONSTITUTION_PATH, directory / "constitution.yaml")
        for name, number, held_out in (
            ("train", prompts.NUM_TRAIN, False),
            ("heldout", prompts.NUM_HELDOUT, True),
        ):
            drawn = prompts.draw_many(number, seed=seed, held_out=held_out)
            prompts.write_jsonl(directory / f"{name}.jsonl", drawn)
        with display:
            report = _run_workers(directory, display, _LANES, seed=seed, effort=effort)
        report["seconds"] = time.monotonic() - started
        (directory / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
        directory.rename(place)


def _build_large(place: Path, policy: Path, display: Display, *, seed: int, effort: float) -> None:
    started = time.monotonic()
    with _scratch(place) as scratch:
        directory = scratch / "nursery"
        directory.mkdir()
        (directory / "policy").symlink_to(policy, target_is_directory=True)
        with display:
            report = _run_workers(directory, display, ("large",), seed=seed, effort=effort)["large_judge"]
        report["seconds"] = time.monotonic() - started
        (directory / "large_judge" / LARGE_REPORT).write_text(json.dumps(report, indent=2), encoding="utf-8")
        (directory / "large_judge").rename(place)


def _run_workers(
    directory: Path, display: Display, lanes: Sequence[str], *, seed: int, effort: float
) -> dict[str, Any]:
    """All lanes side by side; what one finishes is told to the others."""
    heard: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
    report: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers = {lane: stack.enter_context(_worker(lane, directory, seed=seed, effort=effort)) for lane in lanes}
        for lane, worker in workers.items():
            threading.Thread(target=_relay, args=(lane, worker, heard), daemon=True).start()
        running = set(workers)
        while running:
            lane, line = heard.get()
            if line is None:
                if (code := workers[lane].wait()) != 0:
                    failure = failure_of(code, _log(directory, lane))
                    raise RunFailedError(f"growing the nursery failed: lane {lane} {failure}")
                running.discard(lane)
            elif line.startswith("{"):  # libraries talk on stdout too
                message = json.loads(line)
                report |= message.get("report", {})
                if "done" in message:
                    display.show(message["part"], message["done"])
                if message.get("finished"):
                    for other in running:
                        _emit(workers[other], message["part"])
    return report


@contextlib.contextmanager
def _worker(lane: str, directory: Path, *, seed: int, effort: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "nursery.worker", lane, str(directory), str(seed), str(effort)]
    with _log(directory, lane).open("w", encoding="utf-8") as log:
        worker = subprocess.Popen(
            command, cwd=_SOURCES.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _relay(lane: str, worker: subprocess.Popen[str], heard: SimpleQueue[tuple[str, str | None]]) -> None:
    assert worker.stdout
    for line in worker.stdout:
        heard.put((lane, line))
    heard.put((lane, None))


def _emit(worker: subprocess.Popen[str], part: str) -> None:
    assert worker.stdin
    with contextlib.suppress(BrokenPipeError):  # it has ended; its exit status says how
        worker.stdin.write(f"{part}\n")
        worker.stdin.flush()


def _log(directory: Path, lane: str) -> Path:
    return directory.parent / f"lane-{lane}.log"


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder beside the place. Whoever holds the place's lock removes what one that was killed has left."""
    prefix = f".growing-{place.name}-"
    for stale in place.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=prefix) as scratch:
        yield Path(scratch)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file closes, also when the process dies
        yield
