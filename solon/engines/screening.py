"""Renders prompts with a model's chat template, in a process of its own: `python -m solon.engines.screening JOB.json`.

A template is a program that came with a model. It may loop without end or fill the memory, so whoever asks can end
this process (`solon.prompt_screen`). Torch is not imported: a tokenizer needs none.

The job names a file of conversations, one JSON list of [role, content] a line, and the file for the answers, one a
line: a number of tokens, or {"refused": reason}, {"beyond": reason}, {"overlong": tokens}, {"overlong": tokens, "cut":
conversation}, and {"slow": seconds} as the last line.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.cutting import fitted
from solon.engines.admission import named_tokens
from solon.engines.chat_settings import ChatSettings
from solon.errors import InputError, PromptRefusedError, one_line
from solon.records import Message

FLUSH_S = 0.2

Encode = Callable[[Sequence[Message]], list[int]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a model can read. rows: of its embedding, None where that is not known; name: of a token."""

    rows: int | None
    name: Callable[[int], str]

    def lacks(self, ids: Sequence[int]) -> str:
        """What is wrong with token ids; empty: nothing."""
        beyond = {i for i in ids if self.rows is not None and i >= self.rows}
        return f"holds {named_tokens(beyond, self.name)} beyond the {self.rows} rows of the embedding" if beyond else ""


class SlowTemplateError(BaseException):
    """One prompt took longer than all of them may."""


def main() -> None:
    """Does the job of a file; what cannot be loaded goes to stdout as JSON."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = job["memory_bytes"] if hard == resource.RLIM_INFINITY else min(job["memory_bytes"], hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        tokenizer = load_tokenizer(job)
    except InputError as error:
        print(json.dumps({"error": str(error)}))
        return
    except Exception as error:  # whatever a library says of files that are not as it expects them
        print(json.dumps({"error": one_line(f"{type(error).__name__}: {error}", longest=400)}))
        return
    with Path(job["conversations"]).open(encoding="utf-8") as given, Path(job["answers"]).open("w") as out:
        screen_lines(
            given, out, tokenizer.encode_chat, room=job["room"], cuts=job["cuts"], deadline_s=job["deadline_s"],
            vocabulary=Vocabulary(rows=job["rows"], name=tokenizer.name_of),
        )  # fmt: skip


def load_tokenizer(job: dict[str, Any]) -> Any:
    """The tokenizer of the engines that will generate."""
    if not job["trust_remote_code"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # "not installed"; its import would take a second
    from solon.engines.tokens import ChatTokenizer

    chat = ChatSettings(**job.get("chat", {}))
    return ChatTokenizer.load(job["model"], trust_remote_code=job["trust_remote_code"], settings=chat)


def screen_lines(
    given: Any, out: Any, encode: Encode, *, room: int, cuts: bool, deadline_s: float, vocabulary: Vocabulary
) -> None:
    """One answer to each line; ends after the first that took too long."""
    signal.signal(signal.SIGALRM, _too_slow)
    flushed = time.monotonic()
    for line in given:
        messages = [Message(role=role, content=content) for role, content in json.loads(line)]
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        try:
            answer: Any = screen_one(messages, encode, room=room, cuts=cuts, vocabulary=vocabulary)
        except SlowTemplateError:
            answer = {"slow": deadline_s}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        out.write(json.dumps(answer) + "\n")
        if time.monotonic() - flushed > FLUSH_S:
            out.flush()
            flushed = time.monotonic()
        if isinstance(answer, dict) and "slow" in answer:
            return


def screen_one(
    messages: Sequence[Message], encode: Encode, *, room: int, cuts: bool, vocabulary: Vocabulary | None = None
) -> int | dict[str, Any]:
    """What is to be done with one conversation."""
    try:
        ids = encode(messages)
        if vocabulary is not None and (lack := vocabulary.lacks(ids)):
            return {"beyond": lack}
        tokens = len(ids)
        if tokens <= room:
            return tokens
        if not cuts:
            return {"overlong": tokens}
        short = fitted(messages, room=room, length=lambda shorter: len(encode(shorter)))
    except PromptRefusedError as error:
        return {"refused": one_line(str(error), longest=300)}
    except Exception as error:  # a template can raise anything; what it says of one prompt holds for that prompt
        said = one_line(str(error) or type(error).__name__, longest=200)
        return {"refused": f"the chat template refuses it: {said}"}
    if short is None:
        return {"overlong": tokens}
    return {"overlong": tokens, "cut": [[message.role, message.content] for message in short]}


def _too_slow(*_: object) -> None:
    raise SlowTemplateError


if __name__ == "__main__":
    main()
