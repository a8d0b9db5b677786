"""Renders and measures every prompt before a run starts, with the policy's tokenizer, in separate processes.

The results are cached for the user under a digest of the conversations, the tokenizer and the sources that determine
them: `solon train` after `solon check` renders nothing again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from solon.engines.chat_settings import ChatSettings
from solon.errors import InputError
from solon.host.own_code import child_environment, module_command
from solon.host.user_folders import cache_folder
from solon.models.digest import local_directory, tokenizer_digest
from solon.models.facts import read_facts
from solon.pipeline.screen_process import memory_for, wait
from solon.records import Message

Name = Callable[[int], str]
PROMPTS_PER_PROCESS = 5_000
MOST_PROCESSES = 16
DEADLINE_S = 20.0
"""Time for one prompt; real templates take a millisecond."""
CHARACTERS_PER_S = 50_000
"""A prompt gets one more second for this many characters."""
MANY = 50_000
"""Number of prompts from which rendering takes long enough to be announced."""
MEMORY_BYTES = 2 << 30
"""Most memory that one process may use after it has loaded the tokenizer."""
MOST_KEPT = 100
"""Number of results, each for one file and model, that the cache keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """How prompts are rendered."""

    model: str
    """Directory or hub name of the policy."""
    room: int
    """Most tokens of a prompt."""
    cuts: bool = False
    """Cut longer prompts."""
    trust_remote_code: bool = False
    chat: ChatSettings = field(default_factory=ChatSettings)
    """Chat settings of the run's engines, from their options."""
    fetch: bool = False
    """Fetch the tokenizer of a hub name that is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of screening one conversation."""

    tokens: int = 0
    """Tokens before cutting."""
    refused: str = ""
    """Why the template refuses it, or the model its tokens."""
    is_beyond: bool = False
    """It contains tokens that the model's embedding lacks."""
    is_overlong: bool = False
    characters: int = 0
    """Set for a prompt with more characters than the room's tokens can have: it was not rendered, `tokens` is 0."""
    cut: tuple[Message, ...] | None = None
    """The part of it that fits."""

    def excess(self, room: int) -> str:
        """Why the prompt is too long."""
        if self.characters:
            return f"has {self.characters:,} characters, more than {room} tokens can hold"
        return f"has {self.tokens} tokens, {room} fit"


class NotLoadedError(InputError):
    """The tokenizer cannot be loaded."""


def screen(
    conversations: Sequence[tuple[Message, ...]],
    how: Screening,
    *,
    say: Callable[[str], None] | None = None,
    name: Name = lambda number: f"prompt number {number + 1}",
) -> list[Outcome] | None:
    """An outcome for each conversation; None when the tokenizer is that of a hub name and is not available here. say:
    called when rendering takes long. name: names a conversation by its index, for messages.

    Raises InputError when the tokenizer cannot be loaded, or its template refuses or ignores every prompt, or does not
    finish.
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
            answers = _run_all(conversations, how, model, rows, name)
        except NotLoadedError:
            if Path(how.model).is_dir():
                raise
            return None  # half a snapshot or no network: the machines of the engines may have it
        except OSError as error:
            raise InputError(
                f"the prompts cannot be rendered: {error}; free space in {tempfile.gettempdir()}"
            ) from None
        if kept is not None:
            kept.write(answers)
    _refuse_useless_template(answers, how)
    return [_outcome(answer) for answer in answers]


def _run_all(
    conversations: Sequence[tuple[Message, ...]], how: Screening, model: str, rows: int | None, name: Name
) -> list[Any]:
    processes = min(MOST_PROCESSES, os.cpu_count() or 1, -(-len(conversations) // PROMPTS_PER_PROCESS))
    size = -(-len(conversations) // max(1, processes))
    starts = range(0, len(conversations), size or 1)
    job = {
        "model": model,
        "room": how.room,
        "rows": rows,
        "cuts": how.cuts,
        "memory_bytes": memory_for(processes, MEMORY_BYTES),
        "trust_remote_code": how.trust_remote_code,
        "chat": _chat(how),
    }
    with tempfile.TemporaryDirectory(prefix="solon-screen-") as folder, ThreadPoolExecutor(len(starts) or 1) as pool:

        def run(start: int) -> list[Any]:
            files = Path(folder) / f"{start}"
            return _run(conversations[start : start + size], job, files, lambda number: name(start + number))

        return [answer for answers in pool.map(run, starts) for answer in answers]


def _run(part: Sequence[tuple[Message, ...]], job: dict[str, Any], files: Path, name: Name) -> list[Any]:
    """The results of one process. Raises InputError."""
    names = {kind: files.with_suffix(f".{kind}") for kind in ("conversations", "answers", "place")}
    names["conversations"].write_text("".join(_line(messages) for messages in part), encoding="utf-8")
    description = files.with_suffix(".job")
    description.write_text(json.dumps(job | {kind: str(path) for kind, path in names.items()}), encoding="utf-8")
    ending = wait(_start(description), names["place"], lambda number: _allowed_s(part[number]))
    # A killed process may have left half a line.
    lines = names["answers"].read_text().split("\n")[:-1] if names["answers"].exists() else []
    if len(lines) == len(part) and not ending.late_s and not lines[-1].startswith('{"full"'):
        return [json.loads(line) for line in lines]
    if ending.said.startswith("{"):
        reason = json.loads(ending.said)["error"]
        raise NotLoadedError(f"policy model {job['model']}: its tokenizer cannot be loaded: {reason}")
    if ending.number is None:
        reason = ending.said or (f"nothing after {ending.late_s:g} s" if ending.late_s else "its process died")
        raise InputError(f"policy model {job['model']}: its tokenizer cannot be loaded: {reason}")
    if ending.late_s:
        what = f"did not finish within {ending.late_s:g} s"
    elif lines and lines[-1].startswith('{"full"'):
        what = f"takes more memory than {job['memory_bytes'] / (1 << 30):.2g} GiB"
    else:
        what = f"ended the process that rendered it ({ending.said or 'no message'})"
    raise InputError(
        f"policy model {job['model']}: its chat template {what} for {name(ending.number)}, a prompt of "
        f"{_characters(part[ending.number]):,} characters; fix or replace the template, or shorten that prompt"
    )


def _allowed_s(messages: tuple[Message, ...]) -> float:
    return DEADLINE_S + _characters(messages) // CHARACTERS_PER_S


def _characters(messages: tuple[Message, ...]) -> int:
    return sum(len(message.content) for message in messages)


def _refuse_useless_template(answers: Sequence[Any], how: Screening) -> None:
    """Raises InputError when the template fails for every prompt."""
    remedy = "fix it, or name a file with another one in the setting chat_template"
    policy = f"policy model {how.model}: its chat template"
    if not answers or not all(isinstance(answer, dict) for answer in answers):
        return
    if all("broken" in answer for answer in answers):
        raise InputError(f"{policy} {answers[0]['broken']}; {remedy}")
    if all("unshown" in answer for answer in answers):
        raise InputError(f"{policy} renders the same text for every last turn of the user; {remedy}")


def _start(job: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        module_command("solon.engines.screening", str(job)),
        env=child_environment(TOKENIZERS_PARALLELISM="false"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _outcome(answer: Any) -> Outcome:
    if isinstance(answer, int):
        return Outcome(tokens=answer)
    if "unshown" in answer and "overlong" not in answer:
        return Outcome(tokens=answer["unshown"])
    if "refused" in answer:
        return Outcome(refused=answer["refused"])
    if "beyond" in answer:
        return Outcome(refused=answer["beyond"], is_beyond=True)
    cut = answer.get("cut")
    return Outcome(
        tokens=answer["overlong"],
        is_overlong=True,
        characters=answer.get("characters", 0),
        cut=None if cut is None else tuple(Message(role=role, content=content) for role, content in cut),
    )


def _rows(directory: Path) -> int | None:
    """Rows of the embedding; None when the files do not say."""
    try:
        return read_facts(directory).rows
    except InputError:
        return None


def _chat(how: Screening) -> dict[str, Any]:
    return how.chat.model_dump(mode="json", include=set(ChatSettings.model_fields))


def _line(messages: Iterable[Message]) -> str:
    return json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False) + "\n"


class _Kept:
    """Results in the user's cache. A cache that cannot be used only costs time."""

    def __init__(
        self, conversations: Sequence[tuple[Message, ...]], how: Screening, directory: Path, rows: int | None
    ) -> None:
        digest = hashlib.sha256(json.dumps([how.room, how.cuts, rows, len(conversations), _chat(how)]).encode())
        if how.chat.chat_template:
            with contextlib.suppress(OSError):  # the rendering process reports that it cannot be read
                digest.update(Path(how.chat.chat_template).read_bytes())
        digest.update(tokenizer_digest(directory).encode())
        for package in ("transformers", "tokenizers"):
            digest.update(version(package).encode())
        solon = Path(__file__).parents[1]
        rendering = [*sorted((solon / "engines").glob("*.py")), solon / "files" / "cutting.py", Path(__file__)]
        for source in rendering:
            digest.update(source.read_bytes())
        for messages in conversations:
            digest.update(_line(messages).encode())
        try:
            self._folder = cache_folder() / "screened"
        except InputError:  # an account without a home
            self._folder = Path(os.devnull)
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
