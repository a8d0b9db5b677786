"""Questions as text, for endpoints whose tokenizer is not at hand."""

from __future__ import annotations

from collections.abc import Sequence

from solon.feedback.interfaces import Item
from solon.feedback.prompting.markers import escaped, marker_pattern
from solon.feedback.prompting.prompts import LEAST_TEXT_TOKENS, NO_SECRET, Layout, QuestionPieces, shorten
from solon.feedback.prompting.templates import JudgeTemplate
from solon.feedback.questions import Question

CHARACTERS_PER_TOKEN = 3
"""A low estimate: a question that seems to fit must fit."""


class TextPrompts(QuestionPieces):
    """Lays out the same questions as `JudgePrompts`, in the same words and marks, as one text.

    The caller matches the labels: an endpoint names tokens by their text. An endpoint also treats control words in a
    text as control tokens, and cannot be told that they are data. So they are escaped with a backslash.

    escape: whether they are escaped; markers: further control words of this endpoint's model.
    """

    def __init__(
        self,
        template: JudgeTemplate,
        *,
        preamble: str = "",
        secret: bytes = NO_SECRET,
        escape: bool = True,
        markers: Sequence[str] = (),
    ) -> None:
        super().__init__(template, secret=secret)
        self._markers = marker_pattern(markers) if escape else None
        self._head = "\n".join(part for part in (preamble, template.opening) if part)

    def lay(
        self, item: Item, *, swapped: bool = False, reminded: bool = False, max_tokens: int | None = None
    ) -> Layout | None:
        """The question about an item, with texts cut to head and tail if it would exceed about `max_tokens`; None when
        even that does not fit."""
        labels = self._labels(item)
        pieces = self.of(item, swapped=swapped, reminded=reminded)
        texts = [self._sent(piece.text) if piece.is_data else piece.text for piece in pieces]
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

    def _sent(self, text: str) -> str:
        return escaped(text, self._markers) if self._markers is not None else text

    def _labels(self, item: Item) -> tuple[str, ...]:
        return tuple(label.strip() for label in self.labels(item))
