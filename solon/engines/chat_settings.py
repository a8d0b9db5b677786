"""How a conversation becomes text and how an answer is parsed: settings of every engine, for policy and judges."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from solon.files.marks import FilePath

DATE = "2024-07-26"
"""The default date of Llama's own templates."""
OURS = frozenset({"messages", "conversation", "chat_template", "add_generation_prompt", "tokenize", "strftime_now"})
"""Names that Solon always passes to a template."""


class ThinkingMarks(BaseModel):
    """`ThinkingMarks(start="<think>", end="</think>")`: the marks around a thought."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: str = Field(min_length=1, max_length=200)
    end: str = Field(min_length=1, max_length=200)


class ChatSettings(BaseModel):
    """`ChatSettings(chat_template_args={"enable_thinking": False})`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chat_template: FilePath = ""
    """A file with a Jinja chat template, instead of the model's own."""
    chat_template_args: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of the chat template, `{ enable_thinking = false }`."""
    chat_date: str = DATE
    """The date given to a template that asks for today's date, year-month-day: the same in every run, so that prompts
    and cached verdicts stay the same."""
    thinking: Literal["auto", "off"] | ThinkingMarks = "auto"
    """How a leading thought is separated from the answer. `auto`: by marks known from the template or the vocabulary;
    `off`: everything is the answer; or the marks, `{ start = "<think>", end = "</think>" }`."""
    text_tokens: tuple[str, ...] = ()
    """Control tokens that a text may contain, `["</think>"]`: in a text each becomes its one token. Only tokens that
    the tokenizer does not mark as special."""

    @field_validator("chat_date")
    @classmethod
    def _is_date(cls, value: str) -> str:
        try:
            datetime.date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"is {value[:40]!r}, expected year-month-day such as {DATE}") from None
        return value

    @field_validator("chat_template_args")
    @classmethod
    def _are_not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OURS & value.keys()):
            raise ValueError(f"has `{taken[0]}`, which Solon sets itself; remove it")
        return value
