"""Questions as text, for endpoints whose tokenizer is not at hand."""

from __future__ import annotations

from solon.feedback.asking.prompts import LEAST_TEXT_TOKENS, NO_SECRET, Layout, QuestionPieces, shorten
from solon.feedback.asking.templates import JudgeTemplate
from solon.feedback.judging import Item
from solon.feedback.questions import Question

CHARACTERS_PER_TOKEN = 3
"""Few: a question that seems to fit must fit."""


class TextPrompts(QuestionPieces):
    """Lays out the same questions as `JudgePrompts`, in the same words and marks, as one text.

    The labels are matched by whoever asks: an endpoint names tokens by their text.
    """

    def __init__(self, template: JudgeTemplate, *, preamble: str = "", secret: bytes = NO_SECRET) -> None:
        super().__init__(template, secret=secret)
        self._head = "\n".join(part for part in (preamble, template.opening) if part)

    def lay(
        self, item: Item, *, swapped: bool = False, reminded: bool = False, max_tokens: int | None = None
    ) -> Layout | None:
        """The question about an item, its texts cut to head and tail where it would exceed about `max_tokens`; None
        when even that does not fit."""
        answers = item.answers[::-1] if swapped else item.answers
        labels = self._labels(item)
        reminder = self.reminder(labels) if reminded else ""
        pieces = self.pieces(item.conversation, answers, item.question, reminder=reminder)
        texts = [piece.text for piece in pieces]
        fixed = len(self._head) + len(self.template.prefill) + 2
        most = max_tokens * CHARACTERS_PER_TOKEN if max_tokens is not None else None
        excess = fixed + sum(map(len, texts)) - most if most is not None else 0
        if excess > 0:
            data = [list(map(ord, text)) for text, piece in zip(texts, pieces, strict=True) if piece.is_data]
            room = sum(map(len, data)) - excess
            if room < LEAST_TEXT_TOKENS * CHARACTERS_PER_TOKEN * len(data):
                return None
            shortened = iter(shorten(data, room, list(map(ord, self.template.cut))) or ())
            texts = [
                "".join(map(chr, next(shortened, []))) if piece.is_data else text
                for text, piece in zip(texts, pieces, strict=True)
            ]
        whole = f"{self._head}\n{''.join(texts)}{self.template.prefill}"
        return Layout(Question((), (), text=whole, labels=labels), is_cut=excess > 0)

    def _labels(self, item: Item) -> tuple[str, ...]:
        return tuple(label.strip() for label in self.labels(item))
