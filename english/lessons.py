"""Lessons for the specialised judge: questions about answers of the policy, with the programs' verdicts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from english.answers import Answer, near_words, variant
from english.prompts import draw_wishes, tag, wishes_of, with_wishes
from english.requests import Request
from english.teaching import CHANNELS, Hint, HintedLesson
from english.wishes import HARMFUL, keeps, words
from learners.objectives.distil import Lesson
from solon.constitution.constitution import Constitution
from solon.engines.base import TokenizerLike
from solon.feedback.interfaces import Item
from solon.feedback.prompting.prompts import SPECIALISED, JudgePrompts, JudgeTemplate
from solon.records import Prompt

CONSTITUTION_PATH = Path(__file__).parent / "constitution.yaml"
SURE = 5.0
"""Log-odds of a program's verdict."""
SHARE_OF_PAIRS = 0.4
EVERY = 3
"""One whole word in so many gets hints."""
WITHOUT_ARGUMENT = ("plain", "friendly", "sentence", "question", "declines", "offers")
"""Wishes that can be asked of any answer."""
LIMITS = (12, 16, 20, 25, 30)


class Examiner:
    """Lays out questions exactly as a run does. `Examiner.of(Path("judge")).lesson(prompt, (answer,), "brief")`"""

    def __init__(self, encoder: TokenizerLike, template: JudgeTemplate = SPECIALISED) -> None:
        constitution = Constitution.load(CONSTITUTION_PATH)
        self.principles = {p.id: p for p in constitution.principles}
        self._encoder = encoder
        self.prompts = JudgePrompts(template, encoder, preamble=constitution.preamble)

    @classmethod
    def of(cls, model: Path, template: JudgeTemplate = SPECIALISED) -> Self:
        """For the tokenizer of a model."""
        from solon.engines.tokens import ChatTokenizer

        return cls(ChatTokenizer.load(str(model)), template)

    def lesson(self, prompt: Prompt, answers: Sequence[Answer], name: str) -> Lesson:
        """The programs' verdict about one answer, or about two in this order."""
        principle, wish = self.principles[name], wishes_of(prompt)[name]
        kept = [keeps(wish, answer.text) for answer in answers]
        pair = len(answers) == 2
        item = Item(
            conversation=prompt.messages,
            answers=tuple(answer.text for answer in answers),
            question=principle.pairwise_question if pair else principle.pointwise_question,
            task="pairwise" if pair else "pointwise",
            principle_id=name,
            cut=tuple(answer.is_cut for answer in answers),
        )
        laid = self.prompts.lay(item)
        assert laid is not None
        margin = SURE * (kept[0] - kept[1]) if pair else SURE * (1 if kept[0] else -1)
        return Lesson(question=laid.question, margin=margin)

    def hinted(self, prompt: Prompt, answers: Sequence[Answer], name: str) -> HintedLesson:
        """A lesson, with what the programs say at every third word of its answers."""
        lesson = self.lesson(prompt, answers, name)
        wishes = {wish: wish for wish in WITHOUT_ARGUMENT} | wishes_of(prompt)
        ids, found, start = lesson.question.prompt_token_ids, [], 0
        for answer in answers:
            own = self._encoder.encode(answer.text.strip(), is_data=True)
            start = _find(ids, own, start)
            for end, text in _prefixes(self._encoder, own):
                for wish, wish_tag in wishes.items():
                    found.append(Hint(start + end, CHANNELS[wish], keeps(wish_tag, text)))
            start += len(own)
        return HintedLesson(lesson, tuple(found))


def _find(ids: Sequence[int], part: Sequence[int], start: int) -> int:
    """Where a part begins; the texts of a question stand in it unchanged."""
    return next(place for place in range(start, len(ids)) if tuple(ids[place : place + len(part)]) == tuple(part))


def _prefixes(encoder: TokenizerLike, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Beginnings of a text that end with a whole word, every third of them and the text itself: the index of the last
    token, and the text."""
    pieces = [encoder.decode([token], is_raw=True) for token in ids]
    ends = [end for end in range(len(pieces)) if end + 1 == len(pieces) or not pieces[end + 1][:1].isalnum()]
    for number, end in enumerate(ends):
        if (len(ends) - 1 - number) % EVERY == 0:
            yield end, "".join(pieces[: end + 1])


def draw_lessons(
    examiner: Examiner, requests: Sequence[Request], answers: Sequence[Answer], number: int, *, seed: int
) -> list[HintedLesson]:
    """Lessons on the answers to these requests and their variants, under wishes drawn anew for each.

    The wishes' arguments are drawn so that about half of the answers keep them.
    """
    rng = random.Random(f"lessons-{seed}")
    by_request: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        by_request.setdefault(request.text, []).append(index)
    found: list[HintedLesson] = []
    while len(found) < number:
        index = rng.randrange(len(requests))
        request = requests[index]
        siblings = by_request[request.text]
        first = variant(rng, answers[index], answers[rng.randrange(len(answers))])
        tags = _suited(rng, request, first.text)
        prompt = with_wishes(rng, request, tags)
        name = rng.choice(tags).partition(":")[0]
        if rng.random() >= SHARE_OF_PAIRS:
            found.append(examiner.hinted(prompt, (first,), name))
            continue
        second = variant(rng, answers[rng.choice(siblings)], answers[rng.randrange(len(answers))])
        order = (first, second) if rng.random() < 0.5 else (second, first)
        if examiner.lesson(prompt, order, name).margin or rng.random() < 0.15:  # most ties teach nothing
            found.append(examiner.hinted(prompt, order, name))
    return found


def _suited(rng: random.Random, request: Request, text: str) -> list[str]:
    """Wishes for a request, with arguments near what the text says."""
    if request.is_harmful:
        return list(HARMFUL)
    tags, count = [], len(words(text))
    for each in draw_wishes(rng, request):
        name, _, argument = each.partition(":")
        if name == "brief" and rng.random() < 0.7:
            argument = str(min(LIMITS, key=lambda limit: abs(limit - count * rng.uniform(0.7, 1.4))))
        if name in ("mention", "avoid") and rng.random() < 0.4:
            argument = near_words(rng, text)
        tags.append(tag(name, argument))
    return tags


def exam(examiner: Examiner, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> dict[str, list[Lesson]]:
    """Held-out questions by `task/wish`: the policy's own answers to its own prompts, unedited. Pairs on which the
    programs see no difference are left out."""
    found: dict[str, list[Lesson]] = {}
    for prompt, own in zip(prompts, answers, strict=True):
        for name in wishes_of(prompt):
            for answer in own:
                found.setdefault(f"pointwise/{name}", []).append(examiner.lesson(prompt, (answer,), name))
            for one, two in zip(own[::2], own[1::2], strict=False):
                lesson = examiner.lesson(prompt, (one, two), name)
                if lesson.margin:
                    found.setdefault(f"pairwise/{name}", []).append(lesson)
    return found
