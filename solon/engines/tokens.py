"""A Hugging Face tokenizer behind Solon's own small interface: from texts to token ids, the same in every lane.

One rule: text from people or models is data. A control token in a prompt comes from the chat template, never from a
text, whatever the text looks like. A conversation without control words in its texts gets exactly the ids of
`tokenizer.apply_chat_template`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from solon.engines.chat_settings import ChatSettings, ThinkingMarks
from solon.engines.chat_template import ChatTemplate
from solon.engines.control_tokens import MASK, ControlWords, SealedTokenizer, control_tokens
from solon.engines.judge_frame import MARK, SWITCHES, Frame, thought_frame, verdict_frame
from solon.engines.thinking import KNOWN, AnswerText, split_thought
from solon.errors import InputError, PromptRefusedError
from solon.records import Message

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as a model reads it."""

    token_ids: tuple[int, ...]
    opens_thought: bool = False
    """The answer begins inside a thought."""
    shown: tuple[Message, ...] = ()
    """The conversation as the template shows it, if it omits a part: some remove thoughts from earlier answers. Empty:
    the whole conversation."""


class ChatTokenizer:
    """Wraps a fast tokenizer with a chat template.

    Raises InputError when the tokenizer has no chat template or no end-of-turn token.
    """

    def __init__(self, tokenizer: Any, settings: ChatSettings | None = None) -> None:
        settings = settings or ChatSettings()
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} is not a fast one ({type(tokenizer).__name__}), expected "
                "one with a tokenizer.json; convert it, or use another model"
            )
        self.hf = tokenizer
        self._template = ChatTemplate(tokenizer, settings)
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token, expected one; "
                "set `eos_token` in its tokenizer_config.json"
            )
        self._settings = settings
        self.marks = self._find_marks()
        """The marks around a thought; None: this model has no thoughts, or they are part of the answer."""
        marks = (self.marks.start, self.marks.end) if self.marks else ()
        self._control = control_tokens(
            tokenizer, template=self._template.source, marks=marks, text_tokens=settings.text_tokens
        )
        # The unknown-word token is no control token, but no text may spell it either.
        self._unknown = str(tokenizer.unk_token or "\0")
        normalizer = tokenizer.backend_tokenizer.normalizer
        self._normalise = normalizer.normalize_str if normalizer is not None else str
        self._words = ControlWords(
            (*self._control.values(), self._unknown),
            normalizer.normalize_str if normalizer is not None else None,  # a normalizer without steps is false
        )

    @classmethod
    def load(
        cls, model: str, *, trust_remote_code: bool = False, settings: ChatSettings | None = None
    ) -> ChatTokenizer:
        """The tokenizer of a Hugging Face directory or hub name."""
        return cls(load_tokenizer(model, trust_remote_code=trust_remote_code), settings)

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        """Ids of a piece of text within a longer one, with nothing added. `is_data`: apparent control tokens stay
        text."""
        # Some vocabularies prepend a space to every text: only the first piece may have it.
        for before in ("\n", ".") if text and self._adds_space(is_data=is_data) else ():
            known, ids = self._encode(before, is_data=is_data), self._encode(before + text, is_data=is_data)
            if ids[: len(known)] == known:
                return ids[len(known) :]
        return self._encode(text, is_data=is_data)

    def decode(self, token_ids: Sequence[int], *, is_raw: bool = False) -> str:
        """Text without special tokens, stripped of surrounding white space unless `is_raw`."""
        text = str(self.hf.decode(list(token_ids), skip_special_tokens=True))
        return text if is_raw else text.strip()

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """A conversation in the model's chat template, ready for the assistant's turn. Raises PromptRefusedError."""
        return self._ids(self._template.render(messages), messages)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The template's output for a conversation. Raises PromptRefusedError."""
        return self._template.render(messages)

    @cached_property
    def longest_token(self) -> int:
        """Length of the longest entry of the vocabulary: each character is at most one byte or character of text."""
        return max(map(len, self.hf.get_vocab()), default=1)

    def open_chat(self, messages: Sequence[Message]) -> ChatPrompt:
        """The same ids with further facts about the prompt. The template runs once, and a second time if a text
        contains control words. Raises PromptRefusedError when the template refuses the conversation."""
        text = self._template.render(messages)
        opens = self.marks is not None and self._template.opens_thought(text, messages, self.marks)
        return ChatPrompt(tuple(self._ids(text, messages)), opens, self._shown(text, messages))

    def read_answer(self, token_ids: Sequence[int], *, opens_thought: bool = False) -> AnswerText:
        """An answer without its leading thought. opens_thought: the prompt opened it."""
        if self.marks is None:
            return AnswerText(self.decode(token_ids))
        ids = list(token_ids)
        start, end = self._mark_ids
        while ids and not opens_thought and ids[: len(start)] != start and not self.hf.decode(ids[:1]).strip():
            ids = ids[1:]
        if ids[: len(start)] == start:
            ids, opens_thought = ids[len(start) :], True
        place = _find(ids, end) if opens_thought or ids[: len(end)] == end else None
        if place is not None:
            thought, answer = self.decode(ids[:place]), self.decode(ids[place + len(end) :])
            return AnswerText(answer, thought)
        return split_thought(self.decode(ids), self.marks, is_open=opens_thought)

    def chat_frame(self) -> tuple[list[int], list[int]]:
        """Ids before and after the content of one user turn, with the assistant's opening and no open thought.

        Raises InputError when the template does not show the content exactly once.
        """
        known = (self.marks,) if self.marks else ()
        frame = self._frame(lambda: verdict_frame(self._render_turn, self._template.source, self._template.args, known))
        if frame.was_closed:
            _log.warning("the judge's chat template opens a thought, which is closed again: it judges without thinking")
        return self._split(frame)

    def thought_frame(self) -> tuple[list[int], list[int]]:
        """The same, ending inside a thought. Raises InputError also for a model that has no thoughts."""
        marks = self.marks
        if marks is None:
            raise InputError(
                "the judge has no marks around a thought in its chat template or vocabulary, expected a thinking model "
                "for feedback.thought_tokens; set judging.thinking to its marks, or thought_tokens to 0"
            )
        if off := next((name for name in SWITCHES if self._template.args.get(name) is False), ""):
            raise InputError(
                f"judging.chat_template_args has {off} = false, and feedback.thought_tokens is above 0; remove one"
            )
        return self._split(
            self._frame(lambda: thought_frame(self._render_turn, self._template.source, self._template.args, marks))
        )

    def thought_stop(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Strings and ids at which a thought may have ended; see `end_of_thought`."""
        if self.marks is None:
            return (), ()
        last = self._mark_ids[1][-1]
        is_own = len(self._mark_ids[1]) == 1 or last in self._control
        return ((), (last,)) if is_own else ((self.marks.end,), ())

    def end_of_thought(self, token_ids: Sequence[int]) -> int | None:
        """Number of tokens of a thought up to its end mark, the mark included; None: it has not ended."""
        if self.marks is None:
            return None
        end = self._mark_ids[1]
        place = _find(token_ids, end)
        if place is not None:
            return place + len(end)
        return len(token_ids) if self.marks.end in self.hf.decode(list(token_ids)) else None

    @property
    def eos_token_id(self) -> int:
        """The token that ends a sequence."""
        return int(self.hf.eos_token_id)

    @cached_property
    def turn_end_id(self) -> int:
        """The token that ends an answer: the control token that the chat template writes behind one, or the token that
        ends a sequence where it writes none."""
        user, answer = Message(role="user", content="a"), Message(role="assistant", content=MARK)
        try:
            text = self._template.render([user, answer, user])
        except PromptRefusedError:
            return self.eos_token_id
        opening, _, _ = self._template.render([replace(user, content=MARK)]).partition(MARK)
        after = self._encode(text.partition(MARK)[2].lstrip()[:200])[:1]
        # Some templates write no end: then the next turn's opening follows.
        ends = [one for one in after if one in self._control and one not in self._encode(opening)]
        return ends[0] if ends else self.eos_token_id

    def name_of(self, token_id: int) -> str:
        """The text of a token in the vocabulary; empty for an unknown id."""
        known = 0 <= token_id < self.num_tokens or token_id in self.hf.added_tokens_decoder
        return str(self.hf.convert_ids_to_tokens(token_id) or "") if known else ""

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, including added tokens."""
        return len(self.hf)

    @cached_property
    def digest(self) -> str:
        """Identifies vocabulary, chat template and their settings."""
        vocabulary = self.hf.backend_tokenizer.to_str()
        template = self._template.source if self._settings.chat_template else self.hf.chat_template
        parts = [vocabulary, str(template)]
        changed = self._settings.model_dump(mode="json", exclude_defaults=True, exclude={"chat_template"})
        # An engine's settings include more than the chat settings.
        changed = {name: value for name, value in changed.items() if name in ChatSettings.model_fields}
        if changed:
            parts.append(json.dumps(changed, sort_keys=True))
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]

    def _encode(self, text: str, *, is_data: bool = False) -> list[int]:
        return self._sealed.encode_data(text) if is_data else list(self.hf.encode(text, add_special_tokens=False))

    def _adds_space(self, *, is_data: bool) -> bool:
        """Whether a text at the beginning is encoded differently than after a line break."""
        if is_data not in self._spaces:
            line, alone = self._encode("\n", is_data=is_data), self._encode("a", is_data=is_data)
            self._spaces[is_data] = bool(line) and self._encode("\na", is_data=is_data) != line + alone
        return self._spaces[is_data]

    def _ids(self, text: str, messages: Sequence[Message]) -> list[int]:
        """Ids of the template's output for a conversation."""
        ids = self._encode(text)
        if not any(self._words.may_matter_in(message.content) for message in messages):
            return ids
        masked = self._template.masked(messages, text, self._words, self.marks)
        places = self._control_places(masked, is_masked=True)
        if places == self._control_places(text) and not any(self._spells_unknown(m.content) for m in messages):
            return ids
        pieces, at = [], 0
        for first, last, index in places:
            pieces += [text[at:first], self._sealed.name(index)]
            at = last
        return self._sealed.encode("".join((*pieces, text[at:])))

    def _spells_unknown(self, text: str) -> bool:
        return self._unknown in text or self._unknown in self._normalise(text)

    def _control_places(self, text: str, *, is_masked: bool = False) -> list[tuple[int, int, int]]:
        """The control tokens of a text: first and last character and id, without the spaces that belong to them."""
        encoding = self.hf.backend_tokenizer.encode(text, add_special_tokens=False)
        found = []
        for index, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            inner = text[first:last]
            # A masked word may be missing from the vocabulary, and a text may contain the mask character itself.
            if index in self._control and not (is_masked and MASK in inner):
                first, last = first + len(inner) - len(inner.lstrip()), last - len(inner) + len(inner.rstrip())
                found.append((first, last, index))
        return found

    def _shown(self, text: str, messages: Sequence[Message]) -> tuple[Message, ...]:
        if self.marks is None:
            return ()
        shown = []
        for message in messages:
            has_thought = message.role == "assistant" and self.marks.end in message.content
            # If the prompt opened the thought, the answer was stored without the first mark.
            read = split_thought(message.content, self.marks, is_open=True) if has_thought else AnswerText("")
            is_cut = bool(read.thought) and not read.is_unfinished and read.thought not in text
            shown.append(Message(role=message.role, content=read.text) if is_cut else message)
        return tuple(shown) if shown != list(messages) else ()

    def _find_marks(self) -> ThinkingMarks | None:
        setting = self._settings.thinking
        if isinstance(setting, ThinkingMarks):
            return setting
        if setting == "off":
            return None
        template, added = self._template.source, self.hf.get_added_vocab()
        for marks in KNOWN:
            if (marks.start in template and marks.end in template) or (marks.start in added and marks.end in added):
                return marks
            if all(
                any(len(token) > 3 and mark.startswith(token) for token in added) for mark in (marks.start, marks.end)
            ):
                return marks
        return None

    @cached_property
    def _mark_ids(self) -> tuple[list[int], list[int]]:
        assert self.marks is not None
        return self._encode(self.marks.start), self._encode(self.marks.end)

    def _render_turn(self, content: str, switches: dict[str, bool]) -> str:
        return self._template.render([Message(role="user", content=content)], **switches)

    def _frame(self, make: Callable[[], Frame]) -> Frame:
        try:
            frame = make()
        except PromptRefusedError as error:
            raise InputError(f"the judge cannot be asked: {error}; set judging.chat_template to one that can") from None
        if (count := frame.text.count(MARK)) != 1:
            raise InputError(
                f"the judge's chat template shows the user's message {count} times, expected once; name a file with "
                "another template in judging.chat_template"
            )
        return frame

    def _split(self, frame: Frame) -> tuple[list[int], list[int]]:
        before, _, after = frame.text.partition(MARK)
        return self._encode(before), self.encode(after)

    @cached_property
    def _sealed(self) -> SealedTokenizer:
        return SealedTokenizer(self.hf, self._control)

    @cached_property
    def _spaces(self) -> dict[bool, bool]:
        return {}


def _find(ids: Sequence[int], part: Sequence[int]) -> int | None:
    """Index of a part; None: not found."""
    steps = range(len(ids) - len(part) + 1)
    return next((n for n in steps if list(ids[n : n + len(part)]) == list(part)), None)


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer that a model's files describe.

    AutoTokenizer lets the model type override a generic class in tokenizer_config.json: it gives a Qwen model the
    byte-level Qwen tokenizer whatever its tokenizer.json says. Here a declared generic class is used as declared.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = Path(model) / "tokenizer_config.json"
    if config.exists():
        declared = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
        if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return PreTrainedTokenizerFast.from_pretrained(model)
    return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
