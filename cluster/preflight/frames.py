"""The words of a model's chat template around a question, as the engine will render them. They are rendered from the
files only: importing transformers would cost seconds."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solon.engines.admission import ADD_ROWS, named_tokens
from solon.engines.chat_settings import ChatSettings, ThinkingMarks
from solon.engines.judge_frame import MARK, thought_frame, verdict_frame
from solon.engines.thinking import KNOWN
from solon.errors import InputError, nearest
from solon.models.facts import ModelFacts, TokenizerFacts


class FileEncoder:
    """The tokenizer file only. facts: of the model whose template is rendered; chat: its chat format."""

    def __init__(
        self, tokenizer: TokenizerFacts, facts: ModelFacts | None = None, chat: ChatSettings | None = None
    ) -> None:
        self._core, self._words = tokenizer.core, tokenizer.words
        self._facts = facts
        self._chat = chat or ChatSettings()

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        return ids

    def chat_frame(self) -> tuple[list[int], list[int]]:
        """Empty where the template cannot be rendered here."""
        return self._split("" if self._facts is None else frame_text(self._facts, self._chat))

    def thought_frame(self) -> tuple[list[int], list[int]]:
        """The same, ending inside a thought."""
        return self._split("" if self._facts is None else frame_text(self._facts, self._chat, thinks=True))

    @property
    def eos_token_id(self) -> int:
        """Token 0 for a model without one, which another check refuses."""
        end = self._facts.special_token("eos_token") if self._facts is not None else None
        return self._words.get(end or "", 0)

    def _split(self, text: str) -> tuple[list[int], list[int]]:
        before, found, after = text.partition(MARK)
        return (self.encode(before), self.encode(after)) if found else ([], [])


def frame_text(facts: ModelFacts, chat: ChatSettings, *, thinks: bool = False) -> str:
    """The template around a question, after which a verdict can be generated at once, or (`thinks`) a thought; empty
    when the template needs more than it receives here. Engines do the same (`ChatTokenizer.chat_frame`)."""
    source, given = template_source(facts, chat), chat.chat_template_args
    named = (chat.thinking,) if isinstance(chat.thinking, ThinkingMarks) else ()

    def render(content: str, switches: dict[str, bool]) -> str:
        return render_chat(facts, [{"role": "user", "content": content}], chat, **switches)

    if not thinks:
        return verdict_frame(render, source, given, named).text
    marks = next((one for one in (*named, *KNOWN) if one.start in source and one.end in source), None)
    return thought_frame(render, source, given, marks).text if marks else ""


def template_source(facts: ModelFacts, chat: ChatSettings) -> str:
    """The Jinja template that the engine renders; empty where it cannot be read."""
    file = facts.path / "chat_template.jinja"
    named = Path(chat.chat_template).expanduser() if chat.chat_template else file
    if chat.chat_template or file.exists():
        try:
            return named.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    template = facts.tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several with names
        named_ones = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
        template = named_ones[0].get("template") if named_ones else None
    return template if isinstance(template, str) else ""


def render_chat(
    facts: ModelFacts, turns: Sequence[Mapping[str, str]], chat: ChatSettings | None = None, **more: Any
) -> str:
    """A conversation in the model's chat template; empty when the template needs more than it receives here."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    chat = chat or ChatSettings()
    date = datetime.date.fromisoformat(chat.chat_date)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokens: dict[str, Any] = {name: facts.special_token(name) or "" for name in names}
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, indent=how.get("indent"))
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form="%Y-%m-%d": date.strftime(form)
    given = {**tokens, "tools": None, "documents": None, **chat.chat_template_args, **more}
    try:
        template = environment.from_string(template_source(facts, chat))
        return str(template.render(messages=turns, add_generation_prompt=True, **given))
    except Exception:  # a template is a program; loading the model reports what is wrong with it
        return ""


def _refuse(message: str) -> None:
    raise ValueError(message)


def require_rows(facts: ModelFacts, ids: Sequence[int], *, role: str, what: str) -> None:
    """Every token of a judge's questions must have a row in its embedding. Raises InputError."""
    rows, tokenizer = facts.rows, facts.tokenizer
    beyond = {i for i in ids if rows is not None and i >= rows}
    if beyond:
        known = {} if tokenizer is None else tokenizer.tokens
        raise InputError(
            f"{role} model {facts.path}: {what} holds {named_tokens(beyond, lambda i: known.get(i, ''))}, the "
            f"embedding has {rows} rows; {ADD_ROWS}"
        )


def unused_args(facts: ModelFacts, chat: ChatSettings, *, role: str, section: str) -> list[str]:
    """A warning for each argument that the template never mentions."""
    source = template_source(facts, chat)
    known = [name for name in ("enable_thinking", "thinking", "reasoning_effort", "date_string") if name in source]
    return [
        f"{role}: {section}.chat_template_args has `{name}`, which its chat template never mentions"
        f"{nearest(name, known)}; it changes nothing"
        for name in chat.chat_template_args
        if source and not re.search(rf"\b{re.escape(name)}\b", source)
    ]
