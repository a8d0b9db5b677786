"""Renders prompts with a model's chat template in its own process: `python -m solon.engines.screening JOB.json`.

A template is a program that came with a model. It may loop forever or fill the memory, so the caller kills this process
when a prompt takes too long (`solon.pipeline.screen_process`), and its memory is limited. Torch is not imported: a
tokenizer does not need it.

The job names a file of conversations, one JSON list of [role, content] per line; the file for the results, one per
line:

    17                                                  tokens
    {"refused": reason}                                 with "broken": cause where a plain user turn is refused as well
    {"beyond": reason}                                  tokens that the embedding lacks
    {"overlong": tokens}                                or {"overlong": 0, "characters": count}: not rendered
    {"overlong": tokens, "cut": conversation}
    {"unshown": tokens}                                 the template renders the same text for every last
                                                        user turn; also together with "overlong"
    {"full": bytes}                                     insufficient memory, as the last line

and the file for the number of the current prompt, from 0.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from solon.engines.admission import named_tokens
from solon.engines.chat_settings import ChatSettings
from solon.engines.thinking import KNOWN
from solon.errors import InputError, PromptRefusedError, one_line
from solon.files.cutting import fitted
from solon.records import Message

LEAST_CHARACTERS = 65_536
CHARACTERS_PER_TOKEN = 64
"""A text of up to this many characters per token is always rendered, since unknown words are one token each."""
LOADING_BYTES = 16 << 30
"""Address space while libraries are loaded; imports of remote code map much more than they use."""
PLAIN = (Message(role="user", content="hello"),)

Encode = Callable[[Sequence[Message]], list[int]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens that a model can read. rows: of its embedding, None if unknown; name: of a token."""

    rows: int | None
    name: Callable[[int], str]

    def lacks(self, ids: Sequence[int]) -> str:
        """The problem with token ids; empty: none."""
        beyond = {i for i in ids if self.rows is not None and i >= self.rows}
        return f"holds {named_tokens(beyond, self.name)} beyond the {self.rows} rows of the embedding" if beyond else ""


def main() -> None:
    """Run the job of a file; loading errors go to stdout as JSON."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _limit(LOADING_BYTES)
    try:
        tokenizer = load_tokenizer(job)
    except InputError as error:
        print(json.dumps({"error": str(error)}))
        return
    except Exception as error:  # libraries raise anything for malformed files
        print(json.dumps({"error": one_line(f"{type(error).__name__}: {error}", longest=400)}))
        return
    _limit(job["memory_bytes"] + _mapped())
    screener = Screener(tokenizer, room=job["room"], cuts=job["cuts"], rows=job["rows"])
    place = os.open(job["place"], os.O_WRONLY | os.O_CREAT)
    with Path(job["conversations"]).open(encoding="utf-8") as given, Path(job["answers"]).open("w") as out:
        for number, line in enumerate(given):
            os.pwrite(place, number.to_bytes(8, "little"), 0)
            try:
                answer = screener.screen([Message(role=role, content=content) for role, content in json.loads(line)])
            except MemoryError:
                answer = {"full": job["memory_bytes"]}
            out.write(json.dumps(answer) + "\n")
            if isinstance(answer, dict) and "full" in answer:
                return


def _limit(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _mapped() -> int:
    """Bytes of address space in use; if the system does not tell, the limit for loading."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return LOADING_BYTES


def load_tokenizer(job: dict[str, Any]) -> Any:
    """The tokenizer of the engines that will generate."""
    if not job["trust_remote_code"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # "not installed"; its import would take a second
    from solon.engines.tokens import ChatTokenizer

    chat = ChatSettings(**job.get("chat", {}))
    return ChatTokenizer.load(job["model"], trust_remote_code=job["trust_remote_code"], settings=chat)


class Screener:
    """`Screener(tokenizer, room=512, cuts=False).screen(messages)`: screens one conversation after another. tokenizer:
    a `ChatTokenizer`."""

    def __init__(self, tokenizer: Any, *, room: int, cuts: bool, rows: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._room = room
        self._cuts = cuts
        self._ends = {marks.end for marks in (*KNOWN, *filter(None, (tokenizer.marks,)))}
        self._vocabulary = Vocabulary(rows=rows, name=tokenizer.name_of)
        self._is_suspect = True

    def screen(self, messages: Sequence[Message]) -> int | dict[str, Any]:
        """The result for one conversation. Raises MemoryError."""
        characters = self.characters(messages)
        if characters > self._most_characters(characters):
            return self._far_too_long(messages, characters)
        answer = self._measure(messages)
        if isinstance(answer, dict) and "refused" in answer and (cause := self._plain_refusal):
            return answer | {"broken": cause}
        if self._is_suspect and (isinstance(answer, int) or "overlong" in answer):
            self._is_suspect = self._hides_last_turn(messages)
            if self._is_suspect:
                return {"unshown": answer} if isinstance(answer, int) else answer | {"unshown": answer["overlong"]}
        return answer

    def characters(self, messages: Sequence[Message]) -> int:
        """Least number of characters that a template shows: many strip texts and remove the thoughts of earlier
        answers."""
        count = 0
        for message in messages:
            text = message.content
            for end in self._ends if message.role == "assistant" else ():
                text = text.rpartition(end)[2]
            count += len(text.strip())
        return count

    def _most_characters(self, characters: int) -> int:
        """Most characters that can fit into the room."""
        most = max(LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * self._room)
        return most if characters <= most else max(most, self._tokenizer.longest_token * self._room)

    def _far_too_long(self, messages: Sequence[Message], characters: int) -> int | dict[str, Any]:
        answer: dict[str, Any] = {"overlong": 0, "characters": characters}
        if not self._cuts:
            return answer
        shorter = fitted(messages, room=self._most_characters(characters), length=self.characters)
        if shorter is None:
            return answer
        short = self._measure(shorter)
        if isinstance(short, int):  # unknown words or characters that the tokenizer ignores: the kept part fits
            return answer | {"cut": [[message.role, message.content] for message in shorter]}
        return short | answer if "overlong" in short else short

    def _measure(self, messages: Sequence[Message]) -> int | dict[str, Any]:
        encode, vocabulary = self._tokenizer.encode_chat, self._vocabulary
        return screen_one(messages, encode, room=self._room, cuts=self._cuts, vocabulary=vocabulary)

    def _hides_last_turn(self, messages: Sequence[Message]) -> bool:
        *before, last = messages
        other = Message(role=last.role, content=f"not {last.content[:20]}")
        try:
            return bool(self._tokenizer.render_chat((*before, other)) == self._tokenizer.render_chat(messages))
        except PromptRefusedError:
            return False

    @cached_property
    def _plain_refusal(self) -> str:
        """Why the template refuses even a plain user turn; empty: it does not."""
        try:
            self._tokenizer.render_chat(PLAIN)
        except PromptRefusedError as error:
            _raise_if_full(error)
            # Jinja's errors are recognised by name: only the tokenizer depends on the library.
            parses = type(error.__cause__).__name__ != "TemplateSyntaxError"
            line = getattr(error.__cause__, "lineno", None)
            return f"fails: {error.cause}" if parses else f"does not parse: {error.cause} (line {line})"
        return ""


def screen_one(
    messages: Sequence[Message], encode: Encode, *, room: int, cuts: bool, vocabulary: Vocabulary | None = None
) -> int | dict[str, Any]:
    """The result for one conversation, by its tokens. Raises MemoryError."""
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
        _raise_if_full(error)
        return {"refused": one_line(str(error), longest=300)}
    except Exception as error:  # a template can raise anything; an error for one prompt concerns that prompt only
        _raise_if_full(error)
        said = one_line(str(error) or type(error).__name__, longest=200)
        return {"refused": f"the chat template refuses it: {said}"}
    if short is None:
        return {"overlong": tokens}
    return {"overlong": tokens, "cut": [[message.role, message.content] for message in short]}


def _raise_if_full(error: Exception) -> None:
    """Raise MemoryError for a template that fills the memory: that takes seconds, so once is enough."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        raise MemoryError


if __name__ == "__main__":
    main()
