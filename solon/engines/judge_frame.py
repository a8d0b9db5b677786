"""A question's place in a chat template: after it a verdict is written, or a thought and then the verdict.

Engines render the template with a tokenizer, checks before a run from the files alone; both call these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from solon.engines.chat_settings import ThinkingMarks
from solon.engines.thinking import KNOWN, leaves_open

MARK = "solonframemark"
"""Stands for the question."""
SWITCHES = ("enable_thinking", "thinking")
"""Arguments with which published templates turn thoughts on and off."""
Render = Callable[[str, dict[str, bool]], str]
"""The template's output for one user turn with this text and these arguments."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The template around a question."""

    text: str
    was_closed: bool = False
    """The template opened a thought, which was closed again."""


def verdict_frame(render: Render, source: str, given: Collection[str], marks: Sequence[ThinkingMarks]) -> Frame:
    """Ends where a verdict can be written at once, outside a thought. source: of the template; given: arguments that
    the user chose; marks: of the model's thoughts, where known."""
    text = render(MARK, _switches(source, given, on=False))
    opened = next((one for one in (*marks, *KNOWN) if leaves_open(text, one)), None)
    return Frame(text) if opened is None else Frame(f"{text.rstrip()}\n\n{opened.end}\n\n", was_closed=True)


def thought_frame(render: Render, source: str, given: Collection[str], marks: ThinkingMarks) -> Frame:
    """Ends inside a thought, which the model writes before its verdict."""
    text = render(MARK, _switches(source, given, on=True))
    return Frame(text if leaves_open(text, marks) else f"{text}{marks.start}\n")


def _switches(source: str, given: Collection[str], *, on: bool) -> dict[str, bool]:
    return {name: on for name in SWITCHES if name in source and name not in given}
