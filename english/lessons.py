"""Lessons for the specialised judge: questions about answers of the policy, with the programs' verdicts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from english.answers import Answer, variant, word_of
from english.prompts import draw_wishes, tag, wishes_of, with_wishes
from english.requests import Request
from english.teaching import CHANNELS, OF_ONE, OF_TWO, Asked, Hint, Passage
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
OTHERS = 3
"""Questions about an answer beside those of the user's wishes."""
LEAST_TAIL = 4
"""Tokens at the end of a question that are never part of the context."""
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
        """The programs' verdict on a wish of the prompt about one answer, or about two in this order."""
        return self._lesson(prompt, answers, name, wishes_of(prompt)[name])

    def _lesson(self, prompt: Prompt, answers: Sequence[Answer], name: str, wish: str) -> Lesson:
        principle = self.principles[name]
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

    def passage(self, rng: random.Random, prompt: Prompt, answers: Sequence[Answer]) -> Passage | None:
        """Questions about one answer or two: those of the prompt's own wishes, and of some that the user did not state.
        None when the programs see no difference between two answers."""
        wishes = wishes_of(prompt)
        answerable = {name: name for name in WITHOUT_ARGUMENT} | wishes
        others = [name for name in WITHOUT_ARGUMENT if name not in wishes]
        asked = {**wishes, **{name: name for name in rng.sample(others, OTHERS)}}
        lessons = [self._lesson(prompt, answers, name, wish) for name, wish in asked.items()]
        lessons = [lesson for lesson in lessons if lesson.margin or len(answers) == 1]
        if not lessons:
            return None
        ids = [lesson.question.prompt_token_ids for lesson in lessons]
        # The words that begin every question belong to the context; a question keeps at least its end.
        shared = _shared([one[: len(one) - LEAST_TAIL] for one in ids])
        questions = tuple(
            Asked(one[shared:], lesson.question.label_ids, lesson.margin)
            for one, lesson in zip(ids, lessons, strict=True)
        )
        hints = self._hints(ids[0], answers, answerable)
        return Passage(ids[0][:shared], questions, hints, outcome=_outcome(answers, answerable))

    def _hints(self, ids: Sequence[int], answers: Sequence[Answer], wishes: Mapping[str, str]) -> tuple[Hint, ...]:
        """What the programs say at every third word of the answers."""
        found, start = [], 0
        for answer in answers:
            own = self._encoder.encode(answer.text.strip(), is_data=True)
            start = _find(ids, own, start)
            for end, text in _prefixes(self._encoder, own):
                for wish, wish_tag in wishes.items():
                    found.append(Hint(start + end, CHANNELS[wish], keeps(wish_tag, text)))
            start += len(own)
        return tuple(found)


def _outcome(answers: Sequence[Answer], wishes: Mapping[str, str]) -> tuple[tuple[int, bool], ...]:
    """What the programs say of the whole answers, for every wish that can be asked about them."""
    found = []
    for wish, wish_tag in wishes.items():
        kept = [keeps(wish_tag, answer.text) for answer in answers]
        if len(kept) == 1:
            found.append((OF_ONE + CHANNELS[wish], kept[0]))
        elif kept[0] != kept[1]:
            found.append((OF_TWO + CHANNELS[wish], kept[0]))
    return tuple(found)


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning."""
    different = (place for place, found in enumerate(zip(*sequences, strict=False)) if len(set(found)) > 1)
    return next(different, min(map(len, sequences)))


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


def draw_passages(
    examiner: Examiner, requests: Sequence[Request], answers: Sequence[Answer], number: int, *, seed: int
) -> list[Passage]:
    """Passages about the answers to these requests and their variants, under wishes drawn again for each.

    The wishes' arguments are drawn so that about half of the answers keep them.
    """
    rng = random.Random(f"lessons-{seed}")
    by_request: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        by_request.setdefault(request.text, []).append(index)
    found: list[Passage] = []
    while len(found) < number:
        index = rng.randrange(len(requests))
        request = requests[index]
        siblings = by_request[request.text]
        first = variant(rng, answers[index], answers[rng.randrange(len(answers))])
        tags = _suited(rng, request, first.text)
        prompt = with_wishes(rng, request, tags)
        shown: tuple[Answer, ...] = (first,)
        if rng.random() < SHARE_OF_PAIRS:
            second = variant(rng, answers[rng.choice(siblings)], answers[rng.randrange(len(answers))])
            shown = (first, second) if rng.random() < 0.5 else (second, first)
        if (passage := examiner.passage(rng, prompt, shown)) is not None:
            found.append(passage)
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
            argument = word_of(rng, text)
        tags.append(tag(name, argument))
    return tags


def heldout_questions(
    examiner: Examiner, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]
) -> dict[str, list[Lesson]]:
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
