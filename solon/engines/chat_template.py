"""A model's chat template, and which parts of its output are its own.

A template writes control tokens; the texts of a conversation contain none, even if they look like it. If a text does
look like a control token, the conversation is rendered a second time with its texts masked: any control token in that
output was written by the template.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from solon.engines.chat_settings import ChatSettings, ThinkingMarks
from solon.engines.control_tokens import MASK, ControlWords, mask_all
from solon.engines.thinking import split_thought
from solon.errors import InputError, PromptRefusedError, short
from solon.records import Message

MOST_BYTES = 1 << 20
"""Longest template; the longest published one has about 20 thousand."""

Turn = dict[str, Any]
Mask = Callable[[str], str]


class ChatTemplate:
    """`ChatTemplate(tokenizer, settings).render(messages)`

    Raises InputError when there is no template, or when the file of a replacement cannot be read.
    """

    def __init__(self, tokenizer: Any, settings: ChatSettings) -> None:
        self._hf = tokenizer
        self._override = _read(settings.chat_template) if settings.chat_template else None
        if not self._override and not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, expected one; use a chat model, "
                "add `chat_template` to its tokenizer_config.json, or name a file with one in the setting chat_template"
            )
        self.source: str = self._override or tokenizer.get_chat_template()
        if len(self.source.encode("utf-8", "surrogatepass")) > MOST_BYTES:
            raise InputError(
                f"the chat template of {tokenizer.name_or_path!r} has {len(self.source)} characters, expected at most "
                f"{MOST_BYTES}; use another one"
            )
        self.args: dict[str, Any] = dict(settings.chat_template_args)
        self._date = datetime.date.fromisoformat(settings.chat_date)

    def render(self, messages: Sequence[Message], **more: Any) -> str:
        """The conversation as text, ready for the assistant's turn. more: further arguments of the template. Raises
        PromptRefusedError when the template refuses the conversation."""
        return self.render_turns([{"role": m.role, "content": m.content} for m in messages], **more)

    def render_turns(self, turns: Sequence[Turn], **more: Any) -> str:
        """The same for turns in the form that a template gets."""
        settings = {"tokenize": False, "add_generation_prompt": True, "chat_template": self._override} | more
        try:
            text = self._hf.apply_chat_template(list(turns), **self.args | settings, strftime_now=self._today)
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(turn["role"] for turn in turns[:8])
            said = short(str(error)) if str(error) else type(error).__name__
            refusal = f"the chat template refuses the conversation (turns: {roles}): {said}"
            raise PromptRefusedError(refusal, cause=said) from error
        return str(text)

    def masked(self, messages: Sequence[Message], text: str, control: ControlWords, marks: ThinkingMarks | None) -> str:
        """The template's output `text` for the conversation with every message character that could be part of a
        control token replaced by `MASK`.

        control: finds control words in messages; marks: of a thought at the start of an earlier answer. Raises
        PromptRefusedError when the template depends on other control words in a text, so that its own cannot be
        distinguished from those of the text.
        """
        for turns in _masked_turns(messages, control.mask, marks):
            found = self.render_turns(turns)
            if len(found) == len(text) and all(a in (b, MASK) for a, b in zip(found, text, strict=True)):
                return found
        guilty = next((m for m in messages if control.may_matter_in(m.content)), messages[-1])
        raise PromptRefusedError(
            f"the text of a {guilty.role} turn contains control words of the chat template, which decides by them, so "
            f"that text and control tokens cannot be told apart: {short(guilty.content)}"
        )

    def opens_thought(self, text: str, messages: Sequence[Message], marks: ThinkingMarks) -> bool:
        """Whether the answer to a conversation begins inside a thought. text: the template's output."""
        last = messages[-1].content.strip()
        place = text.rfind(last) if last else -1
        tail = text[place + len(last) :] if place >= 0 else text[-len(self._opening) - 200 :]
        return tail.rfind(marks.start) > tail.rfind(marks.end)

    @cached_property
    def _opening(self) -> str:
        """Approximately, the text with which the template opens an answer."""
        return self.render([Message(role="user", content="hi")]).rpartition("hi")[2]

    def _today(self, form: str = "%Y-%m-%d") -> str:
        return self._date.strftime(form)


def _masked_turns(messages: Sequence[Message], mask_words: Mask, marks: ThinkingMarks | None) -> Iterator[list[Turn]]:
    """Ways to mask a conversation, the safest first: everything, or control words only, for templates that inspect
    texts; each also with the thoughts of earlier answers separate, for templates that remove them themselves."""
    for mask in (mask_all, mask_words):
        yield [{"role": m.role, "content": _with_marks(m, mask, marks)} for m in messages]
        if marks is not None and any(m.role == "assistant" and marks.end in m.content for m in messages):
            yield [_parted(m, mask, marks, "\n") for m in messages]
            yield [_parted(m, mask, marks, "") for m in messages]


def _with_marks(message: Message, mask: Mask, marks: ThinkingMarks | None) -> str:
    """The masked text. The marks of a leading thought in an earlier answer stay: the model wrote them as tokens, and
    templates look for them."""
    text = message.content
    if message.role != "assistant" or marks is None or marks.end not in text:
        return mask(text)
    thought, _, answer = text.partition(marks.end)
    before = len(thought) - len(thought.lstrip())
    opened = thought[: before + len(marks.start)] if thought.startswith(marks.start, before) else ""
    return f"{opened}{mask(thought[len(opened) :])}{marks.end}{mask(answer)}"


def _parted(message: Message, mask: Mask, marks: ThinkingMarks, left_out: str) -> Turn:
    """An answer without its thought, masked, with the thought separate."""
    answer = message.content
    if message.role != "assistant" or marks.end not in answer:
        return {"role": message.role, "content": mask(answer)}
    thought = split_thought(answer, marks).thought
    # Templates keep, byte for byte, the text after the last mark, with or without line breaks.
    kept = answer.split(marks.end)[-1]
    kept = kept.lstrip(left_out) if left_out else kept
    return {"role": message.role, "content": mask(kept), "reasoning_content": mask(thought)}


def _read(path: str) -> str:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the chat template {path} cannot be read: {error}; check the setting chat_template") from None
    if not text.strip():
        raise InputError(
            f"the chat template {path} is empty, expected a Jinja template; check the setting chat_template"
        )
    return text
