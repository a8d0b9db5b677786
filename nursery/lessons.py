"""What the models learn from: packed questions for judges, conversations with answers for the policy.

A judge's example holds the conversation and the answer(s) once, and the questions of all principles behind
it. Each question sees that context and itself, at the positions it would have alone, so that one pass over
the context teaches every principle; the ids are exactly those of `JudgePrompts`.
"""

# B examples, T token positions, N questions

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nursery import answers, prompts
from nursery.language import CONSTITUTION_PATH, WordEncoder
from nursery.oracles import PRINCIPLES, adherence, keeps
from nursery.reading import is_asked, is_telling, understand
from nursery.spoiling import near_miss, spoil
from nursery.world import DEEDS_OF_TOPICS, FACTS, FORMS, RELATIONS, TOPICS, VALUES, reply, what_is_known
from solon.constitution.constitution import Constitution
from solon.feedback.prompting.prompts import COMPACT, JudgePrompts
from solon.records import Prompt

CHANNELS = {name: index for index, name in enumerate(PRINCIPLES)}
FACT_CHANNEL = len(CHANNELS)
TOPIC_CHANNEL = FACT_CHANNEL + 1
NUM_CHANNELS = TOPIC_CHANNEL + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One context, its questions, and how likely the first label (`A`, `yes`) is for each."""

    context: tuple[int, ...]
    questions: tuple[tuple[int, ...], ...]
    targets: tuple[float, ...]
    label_ids: tuple[int, int]
    principles: tuple[str, ...]
    hints: tuple[tuple[int, int, float], ...] = ()
    """(position, channel, truth): what can be known at that word already. Used while learning only."""

    @property
    def length(self) -> int:
        return len(self.context) + sum(len(q) for q in self.questions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A batch of examples as tensors."""

    ids_BT: Tensor
    positions_BT: Tensor
    mask_BTT: Tensor
    places_N: tuple[Tensor, Tensor]
    labels_N2: Tensor
    targets_N: Tensor
    hints: Hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What can be known at single words, as tensors."""

    places_M: tuple[Tensor, Tensor]
    channels_M: Tensor
    truths_M: Tensor


class Examiner:
    """Turns prompts and answers into questions with the right verdicts.

    Examiner().pointwise(prompt, "gladly , the crow is black .").targets
    """

    def __init__(self) -> None:
        constitution = Constitution.load(CONSTITUTION_PATH)
        self.encoder = WordEncoder()
        self.principles = constitution.principles
        self.builder = JudgePrompts(COMPACT, self.encoder, preamble=constitution.preamble)
        self._tail = {
            question: self._tail_of(question)
            for p in self.principles
            for question in (p.pairwise_question, p.pointwise_question)
        }

    def pointwise(self, prompt: Prompt, answer: str) -> Example:
        """Is each principle kept?"""
        kept = adherence(prompt, answer)
        asked = [(p.id, p.pointwise_question) for p in self.principles if p.id in kept]
        ids = self.builder.pointwise(prompt.messages, answer, asked[0][1])
        targets = [float(kept[name]) for name, _ in asked]
        example = self._example(ids, asked, targets, self.builder.bool_ids)
        return replace(example, hints=self._hints(prompt, answer, len(example.context)))

    def pairwise(self, prompt: Prompt, first: str, second: str) -> Example:
        """Which of two keeps each principle? Half when both do or neither."""
        one, two = adherence(prompt, first), adherence(prompt, second)
        asked = [(p.id, p.pairwise_question) for p in self.principles if p.id in one]
        ids = self.builder.pairwise(prompt.messages, first, second, asked[0][1])
        targets = [0.5 + 0.5 * (one[name] - two[name]) for name, _ in asked]
        example = self._example(ids, asked, targets, self.builder.pair_ids)
        end = len(example.context)
        end_of_first = end - len(second.split()) - len(self.builder.template.second.split())
        hints = self._hints(prompt, first, end_of_first) + self._hints(prompt, second, end)
        return replace(example, hints=hints)

    def _hints(self, prompt: Prompt, answer: str, end: int) -> tuple[tuple[int, int, float], ...]:
        """Which principles the answer would keep if it ended at a word, what stated facts are true, what is asked."""
        asked, words, found = understand(prompt.messages), answer.split(), []
        known = what_is_known(asked.subject)
        for index, word in enumerate(words):
            place = end - len(words) + index
            if index % 2 == len(words) % 2 or index == len(words) - 1:  # every other word is dense enough
                for name, kept in keeps(asked, words[: index + 1]).items():
                    found.append((place, CHANNELS[name], float(kept)))
            if is_telling(word):
                found.append((place, TOPIC_CHANNEL, float(is_asked(asked, word))))
                if known and word not in FORMS:
                    found.append((place, FACT_CHANNEL, float(word in known)))
        return tuple(found)

    def _example(
        self,
        ids: tuple[int, ...],
        asked: list[tuple[str, str]],
        targets: list[float],
        label_ids: tuple[int, int],
    ) -> Example:
        tails = [self._tail[question] for _, question in asked]
        return Example(
            context=ids[: len(ids) - len(tails[0])],
            questions=tuple(tails),
            targets=tuple(targets),
            label_ids=label_ids,
            principles=tuple(name for name, _ in asked),
        )

    def _tail_of(self, question: str) -> tuple[int, ...]:
        """What `JudgePrompts` puts behind the answers: two answers of different length show where it starts."""
        whole = self.builder.pointwise((), "", question)
        start = self.builder.pointwise((), "", "")
        shared = next(i for i, (a, b) in enumerate(zip(whole, start, strict=False)) if a != b)
        return whole[shared - len(self.encoder.encode(self.builder.template.question)) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What share of a judge's lessons compares two answers, and what share of the answers is spoilt."""

    pairwise: float = 0.5
    spoilt: float = 0.35
    near_miss: float = 0.2
    """Share of the pairs that differ in one telling word at most."""


def draw_example(rng: random.Random, examiner: Examiner, mix: Mix, *, held_out: bool = False) -> Example:
    """One question set about answers of any quality, spoilt ones included."""
    prompt = prompts.draw(rng, held_out=held_out)
    first = draw_any(rng, prompt, mix)
    if rng.random() >= mix.pairwise:
        return examiner.pointwise(prompt, first)
    is_near = rng.random() < mix.near_miss
    second = near_miss(rng, first) if is_near else draw_any(rng, prompt, mix)
    if rng.random() < 0.5:
        first, second = second, first
    return examiner.pairwise(prompt, first, second)


def draw_any(rng: random.Random, prompt: Prompt, mix: Mix) -> str:
    """An answer of mixed quality, or a spoilt one."""
    asked = understand(prompt.messages)
    answer = answers.draw(rng, asked)
    if rng.random() >= mix.spoilt:
        return answer
    if rng.random() < 0.4:
        return near_miss(rng, answer)
    elsewhere = asked if rng.random() < 0.5 else understand(prompts.draw(rng, held_out=False).messages)
    return spoil(rng, answer, answers.draw(rng, elsewhere), prompt.messages[-1].content)


def draw_plain(rng: random.Random, examiner: Examiner) -> Example:
    """A short question and a bare answer to it: what was asked stands out."""
    kind = rng.choice(("fact", "request", "request", "harmful"))  # a wish is the hardest: two things must fit
    while (prompt := prompts.draw(rng, held_out=False)).tags != (kind,):
        pass
    substances: tuple[answers.Substance, ...] = ("good", "good", "bad", "astray")
    traits = answers.Traits(manner="plain", substance=rng.choice(substances), rambling=False)
    return examiner.pointwise(prompt, answers.compose(rng, understand(prompt.messages), traits))


def pack(examples: Sequence[Example], *, pad_id: int) -> Packed:
    """Examples of similar length into one batch."""
    width = max(e.length for e in examples)
    ids, positions, segments, rows, columns, labels = [], [], [], [], [], []
    targets: list[float] = []
    for row, example in enumerate(examples):
        start = len(example.context)
        line, places, segment = list(example.context), list(range(start)), [0] * start
        for number, question in enumerate(example.questions, start=1):
            line += question
            places += range(start, start + len(question))
            segment += [number] * len(question)
            rows.append(row)
            columns.append(len(line) - 1)
            labels.append(example.label_ids)
        targets += example.targets
        rest = width - len(line)
        ids.append(line + [pad_id] * rest)
        positions.append(places + [0] * rest)
        segments.append(segment + [-1] * rest)
    hints = [(row, *hint) for row, example in enumerate(examples) for hint in example.hints]
    return Packed(
        ids_BT=torch.tensor(ids),
        positions_BT=torch.tensor(positions),
        mask_BTT=_mask(torch.tensor(segments)),
        places_N=(torch.tensor(rows), torch.tensor(columns)),
        labels_N2=torch.tensor(labels),
        targets_N=torch.tensor(targets),
        hints=_as_hints(hints),
    )


def _mask(segments_BT: Tensor) -> Tensor:
    """Causal; a question sees the context and itself, padding sees padding."""
    query, key = segments_BT[:, :, None], segments_BT[:, None, :]
    causal = torch.ones(segments_BT.shape[1], segments_BT.shape[1], dtype=torch.bool).tril()
    return causal & ((key == 0) | (key == query))


def _as_hints(found: Sequence[tuple[int, int, int, float]]) -> Hints:
    rows, columns, channels, truths = zip(*found, strict=True) if found else ((), (), (), ())
    return Hints(
        places_M=(torch.tensor(rows), torch.tensor(columns)),
        channels_M=torch.tensor(channels, dtype=torch.long),
        truths_M=torch.tensor(truths),
    )


def drill(rng: random.Random, encoder: WordEncoder, *, rows: int = 8, claims: int = 16) -> tuple[Tensor, Hints]:
    """Rows of bare statements, half of them true: what is known is much, so it is learned before all else."""
    lines: list[list[int]] = []
    hints = []
    for row in range(rows):
        line: list[int] = []
        for _ in range(claims):
            subject, said, is_true = _statement(rng)
            line += encoder.encode(f"the {subject} . {said}")
            hints.append((row, len(line) - 1, FACT_CHANNEL, float(is_true)))
            line += encoder.encode(".")
        lines.append(line)
    width = max(len(line) for line in lines)
    return torch.tensor([line + [encoder.pad_id] * (width - len(line)) for line in lines]), _as_hints(hints)


def _statement(rng: random.Random) -> tuple[str, str, bool]:
    """(subject, what is said of it, whether that is true)"""
    if rng.random() < 0.25:
        subject = rng.choice(tuple(TOPICS))
        does = TOPICS[subject] if rng.random() < 0.5 else rng.choice(DEEDS_OF_TOPICS)
        return subject, f"it {does}", does == TOPICS[subject]
    subject, relation = rng.choice(tuple(FACTS)), rng.choice(RELATIONS)
    truth = FACTS[subject][relation]
    value = truth if rng.random() < 0.5 else rng.choice(VALUES[relation])
    return subject, reply(relation, value), value == truth


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Prompts with answers for the policy: `targets_BT` is -100 wherever nothing is to be learned."""

    ids_BT: Tensor
    targets_BT: Tensor


def converse(rng: random.Random, encoder: WordEncoder, number: int) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) from an assistant of mixed habits, training prompts only."""
    drawn = []
    for _ in range(number):
        prompt = prompts.draw(rng, held_out=False)
        answer = answers.draw(rng, understand(prompt.messages))
        drawn.append((encoder.encode_chat(prompt.messages), [*encoder.encode(answer), encoder.eos_token_id]))
    return drawn


def as_conversations(drawn: Sequence[tuple[list[int], list[int]]], *, pad_id: int) -> Conversations:
    """Pad to the longest; the target of a position is the token after it, in the answer only."""
    width = max(len(p) + len(a) for p, a in drawn) - 1
    ids = torch.full((len(drawn), width), pad_id)
    targets = torch.full((len(drawn), width), -100)
    for row, (prompt, answer) in enumerate(drawn):
        line = [*prompt, *answer]
        ids[row, : len(line) - 1] = torch.tensor(line[:-1])
        targets[row, len(prompt) - 1 : len(line) - 1] = torch.tensor(answer)
    return Conversations(ids_BT=ids, targets_BT=targets)
