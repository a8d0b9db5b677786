"""A thought and the answer after it. Pure functions on text; `solon.engines.tokens` does the same on tokens.

Only a thought at the *beginning* of an answer counts: later marks are part of the answer and are judged with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from solon.engines.chat_settings import ThinkingMarks
from solon.records import Message

KNOWN = tuple(
    ThinkingMarks(start=start, end=end)
    for start, end in (
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
        ("<|channel>thought", "<channel|>"),
    )
)


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A parsed answer, and the thought before it."""

    text: str
    thought: str = ""
    is_unfinished: bool = False
    """A thought began and did not end: there is no answer."""


def split_thought(text: str, marks: ThinkingMarks, *, is_open: bool = False) -> AnswerText:
    """A text without its leading thought. is_open: the thought began before the text.

    >>> split_thought("<think> hm </think> yes", ThinkingMarks(start="<think>", end="</think>"))
    AnswerText(text='yes', thought='hm', is_unfinished=False)
    """
    begun = text.lstrip()
    if begun.startswith(marks.start):
        begun, is_open = begun[len(marks.start) :], True
    if not is_open:
        # Some templates open an answer without a thought by the end mark alone.
        return AnswerText(begun[len(marks.end) :].strip()) if begun.startswith(marks.end) else AnswerText(text.strip())
    thought, found, answer = begun.partition(marks.end)
    return AnswerText(answer.strip(), thought.strip(), is_unfinished=not found)


def without_thought(text: str, known: Iterable[ThinkingMarks] = KNOWN) -> AnswerText:
    """A text of unknown origin without its leading thought, in any of the known marks. A thought without an end is no
    thought: the text stays unchanged."""
    for marks in known:
        if text.lstrip().startswith(marks.start):
            read = split_thought(text, marks)
            return AnswerText(text) if read.is_unfinished else read
    return AnswerText(text)


def without_old_thoughts(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation with the thoughts of its assistant turns removed."""
    return tuple(
        replace(message, content=read.text)
        if message.role == "assistant" and (read := without_thought(message.content)).thought
        else message
        for message in messages
    )


def with_thought(text: str, thought: str, *, marked: bool = True) -> str:
    """Both in one text, for a judge that should see both. marked: it sees which is which."""
    if not thought:
        return text
    return f"<think>\n{thought}\n</think>\n\n{text}" if marked else f"{thought}\n\n{text}"


def leaves_open(text: str, marks: ThinkingMarks) -> bool:
    """Whether a text ends inside a thought."""
    return text.rfind(marks.start) > text.rfind(marks.end)
