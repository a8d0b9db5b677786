"""Lessons for the specialised judge: questions about answers of the policy, with the programs' verdicts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Self

from english.answers import Answer, echo, variant, word_of
from english.prompts import about, draw_wishes, tag, wishes_of, with_wishes
from english.requests import Request
from english.teaching import CHANNELS, OF_WORDS, Asked, Hint, Passage, balanced
from english.wishes import (
    EASY,
    EVERYDAY,
    LIMITS,
    WARM,
    WISHES,
    WORD,
    begins_a_word,
    keeps,
    reading_ease,
    sentiment,
    stems_of,
    words,
)
from learners.objectives.distil import Lesson
from solon.constitution.constitution import Constitution
from solon.engines.base import TokenizerLike
from solon.feedback.interfaces import Item
from solon.feedback.prompting.prompts import SPECIALISED, JudgePrompts, JudgeTemplate
from solon.records import Prompt
from solon.verdicts import Task

CONSTITUTION_PATH = Path(__file__).parent / "constitution.yaml"
SURE, LEAST = 5.0, 0.3
"""Largest and smallest log-odds of a program's verdict."""
CLEAR = 1.0
"""Least difference of two answers, in log-odds, of which one is called the better one: 5 points of reading ease, or
half a warm word."""
SHARE_OF_PAIRS = 0.5
SHARE_ASTRAY = 0.15
"""Of everyday answers that are shown as answers to another request."""
SHARE_OF_ECHOES = 0.06
"""Of answers that only repeat the request."""
SHARE_OF_WORDS = 0.6
"""Of everyday prompts that get a wish about a word beside the drawn ones."""
OTHERS = 3
"""Questions about the form of an answer beside those of the user's wishes."""
WORDS = 2
"""Questions about words of the answers beside those of the user's wishes."""
LEAST_TAIL = 4
"""Tokens at the end of a question that are never part of the context."""
LONG = 3
"""Letters of a word of the user that gets a hint."""
EVERY = 3
"""One whole word in so many gets hints."""


class Examiner:
    """Lays out questions exactly as a run does. `Examiner.of(Path("judge")).lesson(prompt, (answer,), "brief")`"""

    def __init__(self, encoder: TokenizerLike, template: JudgeTemplate = SPECIALISED) -> None:
        constitution = Constitution.load(CONSTITUTION_PATH)
        self.principles = {p.id: p for p in constitution.principles}
        self._encoder = encoder
        self.prompts = JudgePrompts(template, encoder, preamble=constitution.preamble)

    @classmethod
    def of(cls, model: Path, template: JudgeTemplate = SPECIALISED) -> Self:
        """For the tokenizer and chat template of a model."""
        from solon.engines.tokens import ChatTokenizer

        return cls(ChatTokenizer.load(str(model)), template)

    def lesson(self, prompt: Prompt, answers: Sequence[Answer], name: str) -> Lesson:
        """The programs' verdict on a wish of the prompt about one answer, or about two in this order."""
        return self._lesson(prompt, answers, name, wishes_of(prompt)[name])

    def _lesson(self, prompt: Prompt, answers: Sequence[Answer], name: str, wish: str) -> Lesson:
        task: Task = "pairwise" if len(answers) == 2 else "pointwise"
        (asked,) = self.principles[name].questions(task)
        asked = asked.about(replace(prompt, tags=(name, wish)))
        item = Item(
            conversation=prompt.messages,
            answers=tuple(answer.text for answer in answers),
            question=asked.question,
            task=task,
            principle_id=name,
            cut=tuple(answer.is_cut for answer in answers),
        )
        laid = self.prompts.lay(item)
        assert laid is not None
        return Lesson(question=laid.question, margin=_verdict(answers, wish))

    def passage(
        self, rng: random.Random, prompt: Prompt, answers: Sequence[Answer], both: tuple[str, str]
    ) -> Passage | None:
        """Questions about one answer or two: those of the prompt's own wishes, and of some that the user did not state.
        None when the programs see no difference between two answers.

        both: two texts, of which one is not shown when there is one answer; words of either are asked for.
        """
        wishes = wishes_of(prompt)
        others = rng.sample([name for name in OF_WORDS if name not in wishes], OTHERS)
        asked = [*wishes.items(), *((name, name) for name in others), *_of_words(rng, both)]
        drawn = [(self._lesson(prompt, answers, name, wish), wish) for name, wish in dict.fromkeys(asked)]
        lessons = [(lesson, wish) for lesson, wish in drawn if lesson.margin or len(answers) == 1]
        if not lessons:
            return None
        ids = [lesson.question.prompt_token_ids for lesson, _ in lessons]
        # The words that begin every question belong to the context; a question keeps at least its end.
        shared = _shared([one[: len(one) - LEAST_TAIL] for one in ids])
        answerable = {name: name for name in OF_WORDS} | wishes
        questions = tuple(
            Asked(
                one[shared:],
                lesson.question.label_ids,
                lesson.margin,
                (
                    *self._hints_of_question(one[shared:], answers, wish),
                    *_outcomes(len(one) - shared - 1, answers, {**answerable, wish.partition(":")[0]: wish}),
                ),
                kind=f"{len(answers)}/{wish.partition(':')[0]}",
            )
            for one, (lesson, wish) in zip(ids, lessons, strict=True)
        )
        hints = (*self._hints(ids[0], answers), *self._hints_of_user(ids[0], prompt, answers, answerable))
        return Passage(ids[0][:shared], questions, hints)

    def _hints(self, ids: Sequence[int], answers: Sequence[Answer]) -> Iterator[Hint]:
        """What the programs say at every third word of the answers, and at the token that ends them."""
        start = 0
        for answer in answers:
            own = self._encoder.encode(answer.text.strip(), is_data=True)
            start = _find(ids, own, start)
            for end, text in (*_prefixes(self._encoder, own), (len(own), answer.text)):
                for name in OF_WORDS:
                    yield Hint(start + end, CHANNELS[name], _probability(log_odds(name, text)))
                count = len(words(text))
                for limit in LIMITS:
                    yield Hint(start + end, CHANNELS[f"within:{limit}"], float(count <= limit))
            start += len(own)

    def _hints_of_question(self, ids: Sequence[int], answers: Sequence[Answer], wish: str) -> Iterator[Hint]:
        """At the word or number that a question names: what the programs say of the answers about it."""
        name, _, argument = wish.partition(":")
        if name not in ("brief", "mention", "avoid", "topic"):
            return
        lengths = list(accumulate(len(self._encoder.decode([token], is_raw=True)) for token in ids))
        text = "".join(self._encoder.decode([token], is_raw=True) for token in ids)
        if (begin := text.find(f" {argument}")) < 0:
            return
        for word in WORD.finditer(argument):
            end = begin + 1 + word.end()
            place = next(n for n, length in enumerate(lengths) if length >= end)
            if name == "topic":
                (stem,) = stems_of(word[0])
                yield from _has(place, [begins_a_word(stem, one.text) for one in answers], is_named=True)
        if name in ("mention", "avoid"):
            yield from _has(place, [keeps(f"mention:{argument}", one.text) for one in answers], is_named=True)
        yield from _outcome(place, answers, name, wish)

    def _hints_of_user(
        self, ids: Sequence[int], prompt: Prompt, answers: Sequence[Answer], answerable: Mapping[str, str]
    ) -> Iterator[Hint]:
        """At every long word of the user, whether the answers have it; at a word or number that a wish names, what the
        programs say of the answers about this wish; at the end of the user's words, about all wishes."""
        text = prompt.messages[-1].content.strip()
        own = self._encoder.encode(text, is_data=True)
        start = _rfind(ids, own)
        lengths = list(accumulate(len(self._encoder.decode([token], is_raw=True)) for token in own))
        wishes = wishes_of(prompt)
        by_argument = {wish.partition(":")[2]: (name, wish) for name, wish in wishes.items() if ":" in wish}
        topic = wishes.get("topic", "").partition(":")[2].split(", ")
        found = [*WORD.finditer(text)]
        # A topic's word may be named first, and then again in the wish.
        last = {word[0]: word for word in found}
        for word in found:
            place = start + next((n for n, length in enumerate(lengths) if length >= word.end()), len(own) - 1)
            name, wish = by_argument.get(word[0], ("", "")) if word is last[word[0]] else ("", "")
            if name:
                yield from _outcome(place, answers, name, wish)
            if len(word[0]) < LONG:
                continue
            names_topic = word[0] in topic and not name
            for asked, told in (("mention", name == "mention"), ("avoid", name == "avoid"), ("topic", names_topic)):
                yield Hint(place, CHANNELS[f"named:{asked}"], float(told))
            (stem,) = stems_of(word[0])
            have = [
                begins_a_word(stem, one.text) if names_topic else keeps(f"mention:{word[0]}", one.text)
                for one in answers
            ]
            yield from _has(place, have, is_named=bool(name) or names_topic)
        yield from _outcomes(start + len(own), answers, answerable)


def _has(place: int, have: Sequence[bool], *, is_named: bool) -> Iterator[Hint]:
    """Whether one answer or two have a word. is_named: it is the one that a wish or question is about."""
    for which, has in zip("AB", have, strict=False):
        yield Hint(place, CHANNELS[f"{which}:has"], float(has))
        if is_named:
            yield Hint(place, CHANNELS[f"{which}:named"], float(has))


def _of_words(rng: random.Random, both: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Wishes about a number of words near that of a text, and about words that one of two texts has."""
    yield "brief", tag("brief", _limit(rng, both[0]))
    for _ in range(WORDS):
        one, two = both if rng.random() < 0.5 else both[::-1]
        if word := word_of(rng, one, but=two):
            name = rng.choice(("mention", "avoid"))
            yield name, tag(name, word)


def _limit(rng: random.Random, text: str) -> str:
    count = len(words(text))
    return str(min(LIMITS, key=lambda limit: abs(limit - count * rng.uniform(0.7, 1.4))))


def _outcomes(place: int, answers: Sequence[Answer], wishes: Mapping[str, str]) -> Iterator[Hint]:
    """What the programs say of one answer or two about wishes, by name."""
    for name, wish in wishes.items():
        yield from _outcome(place, answers, name, wish)


def _outcome(place: int, answers: Sequence[Answer], name: str, wish: str) -> Iterator[Hint]:
    """What the programs say of one answer or two about a wish."""
    for which, answer in zip("AB", answers, strict=False):
        yield Hint(place, CHANNELS[f"{which}:{name}"], _probability(log_odds(wish, answer.text)))
    if len(answers) == 2 and (verdict := _verdict(answers, wish)):
        yield Hint(place, CHANNELS[f"better:{name}"], _probability(verdict))


@lru_cache(1 << 17)
def log_odds(wish: str, text: str) -> float:
    """The program's verdict as log-odds: of fixed size for most wishes, by degree for plain words and for a warm tone.
    An answer near the limit teaches little about either."""
    name, kept = wish.partition(":")[0], keeps(wish, text)
    if name == "plain":
        size = abs(reading_ease(text) - EASY) / 5
    elif name == "friendly":
        size = abs(_summed(sentiment(text)) - _summed(WARM))
    else:
        size = SURE
    return min(max(size, LEAST), SURE) * (1 if kept else -1)


def _summed(compound: float) -> float:
    """The sum of valences that VADER squeezes into (-1, 1)."""
    return compound * math.sqrt(15 / max(1 - compound * compound, 1e-3))


def _verdict(answers: Sequence[Answer], wish: str) -> float:
    """Log-odds that the only answer keeps the wish, or that the first of two is the better one: 0 where both keep it or
    neither, and where they are too alike in degree."""
    first, *second = (log_odds(wish, answer.text) for answer in answers)
    if not second:
        return first
    gap = first - second[0]
    return min(max(gap, -SURE), SURE) if (first > 0) != (second[0] > 0) and abs(gap) >= CLEAR else 0.0


def _probability(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning."""
    different = (place for place, found in enumerate(zip(*sequences, strict=False)) if len(set(found)) > 1)
    return next(different, min(map(len, sequences)))


def _find(ids: Sequence[int], part: Sequence[int], start: int) -> int:
    """Where a part begins; the texts of a question stand in it unchanged."""
    return next(place for place in range(start, len(ids)) if tuple(ids[place : place + len(part)]) == tuple(part))


def _rfind(ids: Sequence[int], part: Sequence[int]) -> int:
    """Where the last occurrence of a part begins."""
    starts = range(len(ids) - len(part), -1, -1)
    return next(place for place in starts if tuple(ids[place : place + len(part)]) == tuple(part))


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
    everyday = [request for request in requests if not request.is_harmful]
    found: list[Passage] = []
    while len(found) < number:
        index = rng.randrange(len(requests))
        request = requests[index]
        if not request.is_harmful and rng.random() < SHARE_ASTRAY:
            request = rng.choice(everyday)
        siblings = by_request[request.text]
        first = variant(rng, answers[index], answers[rng.randrange(len(answers))])
        if rng.random() < SHARE_OF_ECHOES:
            first = echo(rng, request)
        second = variant(rng, answers[rng.choice(siblings)], answers[rng.randrange(len(answers))])
        prompt = with_wishes(rng, request, _suited(rng, request, first.text, second.text))
        shown: tuple[Answer, ...] = (first,)
        if rng.random() < SHARE_OF_PAIRS:
            shown = (first, second) if rng.random() < 0.5 else (second, first)
        if (passage := examiner.passage(rng, prompt, shown, (first.text, second.text))) is not None:
            found.append(passage)
    return balanced(found)


def _suited(rng: random.Random, request: Request, text: str, other: str) -> list[str]:
    """Wishes for a request, with arguments near what one of two answers to it says.

    Wishes about a word are frequent, as they are the hardest to judge; and whether the word is there must not follow
    from how well it suits the topic.
    """
    if request.is_harmful:
        return draw_wishes(rng, request)
    drawn = [wish.partition(":")[::2] for wish in draw_wishes(rng, request)]
    drawn = [pair for pair in drawn if pair[0] in EVERYDAY]
    if rng.random() < SHARE_OF_WORDS:
        name = rng.choice(("mention", "avoid"))
        kept = [pair for pair in drawn if pair[0] != name][:1]
        drawn = [*kept, (name, WISHES[name].draw(rng, request))]
    tags = []
    for name, argument in drawn:
        if name == "brief" and rng.random() < 0.7:
            argument = _limit(rng, text)
        elif name in ("mention", "avoid") and rng.random() < 0.8:
            one, two = (text, other) if rng.random() < 0.5 else (other, text)
            argument = word_of(rng, one, but=two) or argument
        tags.append(tag(name, argument))
    return about(request, tags)


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
