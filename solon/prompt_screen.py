"""Every prompt rendered and measured before a run starts, by the tokenizer of the policy, in processes of its own.

The answers are kept in the user's cache, by a digest of the conversations, the tokenizer and the sources that decide
them: `solon train` after `solon check` renders nothing again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import solon
from solon.engines.chat_settings import ChatSettings
from solon.errors import InputError, one_line
from solon.model_digest import local_directory, tokenizer_digest
from solon.model_facts import read_facts
from solon.records import Message

PROMPTS_PER_PROCESS = 5_000
MOST_PROCESSES = 16
DEADLINE_S = 20.0
"""For one prompt: real templates take a millisecond."""
SILENCE_S = 120.0
"""A process that has written nothing for so long is ended."""
MANY = 50_000
"""So many take long enough to say that they are rendered."""
MEMORY_BYTES = 16 << 30
"""Of one process."""
MOST_KEPT = 100
"""Answers of so many files and models are kept in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """How prompts are rendered."""

    model: str
    """Directory or hub name of the policy."""
    room: int
    """Tokens that a prompt may have."""
    cuts: bool = False
    """Cut what is longer."""
    trust_remote_code: bool = False
    chat: ChatSettings = field(default_factory=ChatSettings)
    """How the engines of the run are talked to; their options hold it."""
    fetch: bool = False
    """Fetch the tokenizer of a hub name that is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found of one conversation."""

    tokens: int = 0
    """Before it was cut."""
    refused: str = ""
    """Why the template does not take it, or the model its tokens."""
    is_beyond: bool = False
    """It holds tokens that the model's embedding lacks."""
    is_overlong: bool = False
    cut: tuple[Message, ...] | None = None
    """What fits of it."""


class NotLoadedError(InputError):
    """The tokenizer cannot be loaded."""


def screen(
    conversations: Sequence[tuple[Message, ...]], how: Screening, *, say: Callable[[str], None] | None = None
) -> list[Outcome] | None:
    """An outcome for each; None when the tokenizer is that of a hub name and cannot be had here. say: is told when it
    takes long.

    Raises InputError when the tokenizer cannot be loaded or its template does not come to an end.
    """
    directory = local_directory(how.model)
    if directory is None and not how.fetch:
        return None
    rows = None if directory is None else _rows(directory)
    kept = None if directory is None else _Kept(conversations, how, directory, rows)
    answers = None if kept is None else kept.read()
    if answers is None:
        if say is not None and len(conversations) >= MANY:
            say(f"rendering {len(conversations):,} prompts with the policy's chat template; the result is kept")
        try:
            model = how.model if directory is None or how.fetch else str(directory)
            answers = _run_all(conversations, how, model, rows)
        except NotLoadedError:
            if Path(how.model).is_dir():
                raise
            return None  # half a snapshot, or no network: the machines of the engines may have it
        except OSError as error:
            raise InputError(
                f"the prompts cannot be rendered: {error}; free space in {tempfile.gettempdir()}"
            ) from None
        if kept is not None:
            kept.write(answers)
    return [_outcome(answer) for answer in answers]


def _run_all(conversations: Sequence[tuple[Message, ...]], how: Screening, model: str, rows: int | None) -> list[Any]:
    processes = min(MOST_PROCESSES, os.cpu_count() or 1, -(-len(conversations) // PROMPTS_PER_PROCESS))
    size = -(-len(conversations) // max(1, processes))
    parts = [conversations[start : start + size] for start in range(0, len(conversations), size)]
    with tempfile.TemporaryDirectory(prefix="solon-screen-") as folder, ThreadPoolExecutor(len(parts) or 1) as pool:
        places = [Path(folder) / f"{number}" for number in range(len(parts))]
        jobs = [pool.submit(_run, part, how, model, rows, place) for part, place in zip(parts, places, strict=True)]
        return [answer for job in jobs for answer in job.result()]


def _run(part: Sequence[tuple[Message, ...]], how: Screening, model: str, rows: int | None, place: Path) -> list[Any]:
    """The answers of one process. Raises InputError."""
    given, answers = place.with_suffix(".in"), place.with_suffix(".out")
    given.write_text("".join(_line(messages) for messages in part), encoding="utf-8")
    job = {
        "model": model,
        "conversations": str(given),
        "answers": str(answers),
        "room": how.room,
        "rows": rows,
        "cuts": how.cuts,
        "deadline_s": DEADLINE_S,
        "memory_bytes": MEMORY_BYTES,
        "trust_remote_code": how.trust_remote_code,
        "chat": _chat(how),
    }
    given.with_suffix(".job").write_text(json.dumps(job), encoding="utf-8")
    said = _wait(_start(given.with_suffix(".job")), answers)
    found = [json.loads(line) for line in answers.read_text().splitlines()] if answers.exists() else []
    is_slow = bool(found) and isinstance(found[-1], dict) and "slow" in found[-1]
    if len(found) == len(part) and not is_slow:
        return found
    if said.startswith("{"):
        raise NotLoadedError(f"policy model {how.model}: its tokenizer cannot be loaded: {json.loads(said)['error']}")
    shown = part[min(len(found) - is_slow, len(part) - 1)][-1].content
    which = "the one" if is_slow else "near the one"
    raise InputError(
        f"policy model {how.model}: its chat template did not come to an end within {DEADLINE_S:g} s and "
        f"{MEMORY_BYTES >> 30} GiB for a prompt, {which} that ends in {shown[-60:]!r}"
        f"{f' ({said})' if said else ''}; mend or replace the template"
    )


def _start(job: Path) -> subprocess.Popen[str]:
    # -P: a module of the same name in the current directory is not ours.
    path = os.pathsep.join(filter(None, (str(Path(solon.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "solon.engines.screening", str(job)],
        env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait(process: subprocess.Popen[str], answers: Path) -> str:
    """What it said: JSON on stdout, or the last line of its complaint. A process that stands still is ended."""
    size, since = 0, time.monotonic()
    while True:
        try:
            said, complaint = process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            now = answers.stat().st_size if answers.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > SILENCE_S:
                process.kill()
                process.communicate()
                return ""
            continue
        except BaseException:
            process.kill()
            process.communicate()
            raise
        lines = [line for line in complaint.splitlines() if line.strip()]
        return said.strip() or (one_line(lines[-1], longest=200) if process.returncode and lines else "")


def _outcome(answer: Any) -> Outcome:
    if isinstance(answer, int):
        return Outcome(tokens=answer)
    if "refused" in answer:
        return Outcome(refused=answer["refused"])
    if "beyond" in answer:
        return Outcome(refused=answer["beyond"], is_beyond=True)
    cut = answer.get("cut")
    return Outcome(
        tokens=answer["overlong"],
        is_overlong=True,
        cut=None if cut is None else tuple(Message(role=role, content=content) for role, content in cut),
    )


def _rows(directory: Path) -> int | None:
    """Rows of the embedding; None where the files do not say."""
    try:
        return read_facts(directory).rows
    except InputError:
        return None


def _chat(how: Screening) -> dict[str, Any]:
    return how.chat.model_dump(mode="json", include=set(ChatSettings.model_fields))


def _line(messages: Iterable[Message]) -> str:
    return json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False) + "\n"


class _Kept:
    """Answers in the user's cache. A cache that cannot be used costs time, nothing else."""

    def __init__(
        self, conversations: Sequence[tuple[Message, ...]], how: Screening, directory: Path, rows: int | None
    ) -> None:
        import platformdirs

        digest = hashlib.sha256(json.dumps([how.room, how.cuts, rows, len(conversations), _chat(how)]).encode())
        if how.chat.chat_template:
            with contextlib.suppress(OSError):  # whoever renders says that it cannot be read
                digest.update(Path(how.chat.chat_template).read_bytes())
        digest.update(tokenizer_digest(directory).encode())
        for package in ("transformers", "tokenizers"):
            digest.update(version(package).encode())
        here = Path(__file__).parent
        for source in (*sorted((here / "engines").glob("*.py")), here / "cutting.py"):
            digest.update(source.read_bytes())
        for messages in conversations:
            digest.update(_line(messages).encode())
        self._folder = platformdirs.user_cache_path("solon") / "screened"
        self._path = self._folder / f"{digest.hexdigest()[:32]}.json"
        self._count = len(conversations)

    def read(self) -> list[Any] | None:
        try:
            answers = json.loads(self._path.read_text(encoding="utf-8"))
            os.utime(self._path)
            return answers if len(answers) == self._count else None
        except (OSError, ValueError):
            return None

    def write(self, answers: list[Any]) -> None:
        scratch = self._path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(answers), encoding="utf-8")
            scratch.replace(self._path)
            files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in files[:-MOST_KEPT]:
                path.unlink()
