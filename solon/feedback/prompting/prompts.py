"""The layout of a question to a judge, and the position of its one-token answer.

    [preamble | conversation | answer(s)] [question] Verdict: _

A template may put the answers before the conversation. The question comes last, so that a further principle about the
same answers costs only its own tail; everything before it is shared and served from the engine's prefix cache. Texts by
people or models are *data*: they are tokenised separately, with special tokens disabled, and placed between marks with
a nonce (or ended by a control token, or, in a tiny vocabulary, stripped of the words of the headings), so that no
answer can open a turn or imitate another answer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from solon.errors import InputError
from solon.feedback.interfaces import Item
from solon.feedback.prompting.templates import ASSISTANT, COMPACT, SPECIALISED, TEMPLATES, JudgeTemplate
from solon.feedback.questions import Question
from solon.records import Message

__all__ = [
    "ASSISTANT", "COMPACT", "SPECIALISED", "TEMPLATES",
    "Encoder", "JudgePrompts", "JudgeTemplate", "Layout", "label_ids",
]  # fmt: skip

NO_SECRET = b"solon"
PIECES_REMEMBERED = 4096
LEAST_TEXT_TOKENS = 16
"""Fewest tokens that an overlong text keeps; with less room, the question is not asked."""


class Encoder(Protocol):
    """The part of a tokenizer that a template needs."""

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        """Token ids of a text."""
        ...

    def chat_frame(self) -> tuple[list[int], list[int]]:
        """Ids before and after the content of one user turn, including the opening of the assistant's turn."""
        ...

    @property
    def eos_token_id(self) -> int:
        """The token that ends a sequence."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """A laid-out question, and whether a text in it had to be cut."""

    question: Question
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a question: words of the template, data, or the end of a text."""

    text: str
    is_data: bool = False
    is_end: bool = False
    """The end-of-sequence token, without text."""


class QuestionPieces:
    """Puts items into the words of a template. Independent of tokenizers."""

    def __init__(self, template: JudgeTemplate, *, secret: bytes = NO_SECRET) -> None:
        self.template = template
        self._secret = secret

    def pieces(
        self,
        conversation: Sequence[Message],
        answers: Sequence[str],
        question: str,
        *,
        reminder: str = "",
        cut: Sequence[bool] = (),
    ) -> list[Piece]:
        """One answer, or the two of a pair in the order shown. cut: which of them ended at the length limit."""
        template, nonce = self.template, self._nonce(conversation)
        roles = {"system": template.system, "user": template.user, "assistant": template.assistant}
        said: list[Piece] = []
        for message in conversation:
            said += self._text(roles[message.role], message.content, nonce)
        answered: list[Piece] = []
        headings = (template.answer,) if len(answers) == 1 else (template.first, template.second)
        for heading, answer, is_cut in zip(headings, answers, cut or (False,) * len(answers), strict=True):
            answered += self._text(heading, answer, nonce)
            # Outside the marks: an answer cannot claim this of itself.
            answered += [Piece(f"{template.ended}\n")] if is_cut and template.ended else []
        asked = f"{template.question} {question}" + (f" {reminder}" if reminder else "")
        laid = (*answered, *said) if template.answers_first else (*said, *answered)
        return [*laid, Piece(f"{asked}\n")]

    def of(self, item: Item, *, swapped: bool, reminded: bool) -> list[Piece]:
        """The pieces of an item. swapped: the two answers in reverse order; reminded: the question is repeated."""
        order = -1 if swapped else 1
        reminder = self.reminder(self.labels(item)) if reminded else ""
        return self.pieces(
            item.conversation, item.answers[::order], item.question, reminder=reminder, cut=item.cut[::order]
        )

    def reminder(self, labels: Sequence[str]) -> str:
        """The addition when a judge is asked again; empty when the template does not ask again."""
        return self.template.reminder.format(labels=", ".join(label.strip() for label in labels))

    def labels(self, item: Item) -> tuple[str, ...]:
        """The answer labels of an item's question."""
        if item.task == "pairwise":
            return self.template.pair_labels
        return self.template.bool_labels if item.task != "score" else tuple(f" {n}" for n in range(1, item.scale + 1))

    def _nonce(self, conversation: Sequence[Message]) -> str:
        """The same for every question about a conversation, so that caches still hit; unknown to the authors of the
        texts."""
        if not self.template.fenced:
            return ""
        said = "\0".join(f"{m.role}\1{m.content}" for m in conversation)
        return hmac.new(self._secret, said.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:8]

    def _text(self, heading: str, text: str, nonce: str) -> list[Piece]:
        data = text.strip()
        if self.template.reserved and any(word in self.template.reserved for word in data.split()):
            data = " ".join(word for word in data.split() if word not in self.template.reserved)
        if self.template.ended_by_token:
            return [Piece(f"{heading}\n"), Piece(data, is_data=True), Piece("", is_end=True)]
        if not nonce:
            return [Piece(heading), Piece(f" {data}", is_data=True), Piece("\n")]
        return [Piece(f"{heading} <{nonce}>\n"), Piece(data, is_data=True), Piece(f"\n</{nonce}>\n")]


class JudgePrompts(QuestionPieces):
    """Builds the token ids of questions for one judge and one constitution.

    `secret`: keys the nonces; the same secret gives the same questions. `frame`: ids before and after a user turn, in
    place of the encoder's `chat_frame`. Raises InputError when the judge's tokenizer splits an answer label or maps two
    labels to one token.
    """

    def __init__(
        self,
        template: JudgeTemplate,
        encoder: Encoder,
        *,
        preamble: str = "",
        secret: bytes = NO_SECRET,
        frame: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        super().__init__(template, secret=secret)
        self._encoder = encoder
        # A group has many questions about few texts, so encodings are cached.
        self._encode = lru_cache(PIECES_REMEMBERED)(self._encode_piece)
        before, after = frame or encoder.chat_frame()
        head = "\n".join(part for part in (preamble, template.opening) if part)
        self._head = (*before, *(encoder.encode(head + "\n") if head else ()))
        self._tail = tuple(after)
        self._prefill = tuple(encoder.encode(template.prefill))
        self._cut = encoder.encode(template.cut)
        first, second = label_ids(encoder, template.prefill, template.pair_labels)
        yes, no = label_ids(encoder, template.prefill, template.bool_labels)
        self.pair_ids, self.bool_ids = (first, second), (yes, no)
        self._score_ids: dict[int, tuple[int, ...]] = {}

    def pairwise(self, conversation: Sequence[Message], first: str, second: str, question: str) -> tuple[int, ...]:
        """Ids of "which of these two is better", answered by `pair_ids`."""
        return self._whole(self.pieces(conversation, (first, second), question))

    def pointwise(self, conversation: Sequence[Message], answer: str, question: str) -> tuple[int, ...]:
        """Ids of a yes/no question about one answer, answered by `bool_ids`."""
        return self._whole(self.pieces(conversation, (answer,), question))

    def lay(
        self, item: Item, *, swapped: bool = False, reminded: bool = False, max_tokens: int | None = None
    ) -> Layout | None:
        """The question about an item, with texts cut to head and tail if it would exceed `max_tokens`; None when even
        that does not fit. `swapped`: the two answers in reverse order."""
        pieces = self.of(item, swapped=swapped, reminded=reminded)
        encoded: list[Sequence[int]] = [self._encoded(piece) for piece in pieces]
        fixed = len(self._head) + len(self._tail) + len(self._prefill)
        excess = fixed + sum(map(len, encoded)) - max_tokens if max_tokens is not None else 0
        if excess > 0:
            data = [ids for ids, piece in zip(encoded, pieces, strict=True) if piece.is_data]
            room = sum(map(len, data)) - excess
            shortened = iter(shorten(data, room, self._cut) or ())
            encoded = [next(shortened, []) if p.is_data else ids for ids, p in zip(encoded, pieces, strict=True)]
            if fixed + sum(map(len, encoded)) > (max_tokens or 0) or room < LEAST_TEXT_TOKENS * len(data):
                return None
        ids = (*self._head, *(i for piece in encoded for i in piece), *self._tail, *self._prefill)
        return Layout(Question(ids, self.ids_of(item)), is_cut=excess > 0)

    def ids_of(self, item: Item) -> tuple[int, ...]:
        """The label tokens of an item's question."""
        if item.task == "pairwise":
            return self.pair_ids
        if item.task != "score":
            return self.bool_ids
        if item.scale not in self._score_ids:
            self._score_ids[item.scale] = label_ids(self._encoder, self.template.prefill, self.labels(item))
        return self._score_ids[item.scale]

    def before_critique(self, question: Question) -> tuple[int, ...]:
        """The ids of a question up to the place of a critique, without the prefill."""
        return (*self.before_thought(question), *self._encoder.encode(self.template.critique))

    def after_critique(self, question: Question, stem: Sequence[int], critique: str) -> Question:
        """The same question with a critique before the verdict."""
        written = self._encoder.encode(f" {critique.strip()}", is_data=True)
        return Question((*stem, *written, *self._encoder.encode("\n"), *self._prefill), question.label_ids)

    def before_thought(self, question: Question) -> tuple[int, ...]:
        """The ids of a question without the prefill."""
        return question.prompt_token_ids[: len(question.prompt_token_ids) - len(self._prefill)]

    def after_thought(self, question: Question, stem: Sequence[int], thought: Sequence[int]) -> Question:
        """The same question with the judge's thought, up to its end mark, before the verdict."""
        return Question((*stem, *thought, *self._encoder.encode("\n\n"), *self._prefill), question.label_ids)

    def _encoded(self, piece: Piece) -> tuple[int, ...]:
        return (self._encoder.eos_token_id,) if piece.is_end else self._encode(piece.text, piece.is_data)

    def _encode_piece(self, text: str, is_data: bool) -> tuple[int, ...]:
        return tuple(self._encoder.encode(text, is_data=is_data))

    def _whole(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        encoded = [i for piece in pieces for i in self._encoded(piece)]
        return (*self._head, *encoded, *self._tail, *self._prefill)


def shorten(texts: Sequence[Sequence[int]], room: int, cut: Sequence[int]) -> list[Sequence[int]] | None:
    """Cut the longest texts to one common length, keeping head and tail, so that all fit into `room` together.

    None when there is not enough room. A text up to the common length stays whole.
    """
    lengths = sorted(map(len, texts))
    limit, rest = 0, room
    for place, length in enumerate(lengths):
        share = rest // (len(lengths) - place)
        if length > share:
            limit = share
            break
        rest -= length
        limit = length
    kept = limit - len(cut)
    if kept < 2:
        return None
    head = (kept + 1) // 2
    return [text if len(text) <= limit else [*text[:head], *cut, *text[len(text) - (kept - head) :]] for text in texts]


def label_ids(encoder: Encoder, prefill: str, labels: Sequence[str]) -> tuple[int, ...]:
    """The single token of each label directly after the prefill.

    Raises InputError when a label is not exactly one further token, or two labels are the same token.
    """
    stem = encoder.encode(prefill)
    found: list[int] = []
    for label in labels:
        ids = encoder.encode(prefill + label)
        if ids[: len(stem)] != stem or len(ids) != len(stem) + 1:
            raise InputError(
                f"the judge's tokenizer splits the answer label {label.strip()!r}: after {prefill!r} it becomes "
                f"{len(ids) - len(stem)} tokens, expected exactly 1; choose another judge or feedback.template"
            )
        found.append(ids[-1])
    if len(set(found)) < len(found):
        names = " and ".join(repr(label.strip()) for label in labels)
        raise InputError(
            f"the judge's tokenizer maps the answer labels {names} to one "
            "token (unknown words?), expected different ones; choose another judge or feedback.template"
        )
    return tuple(found)
