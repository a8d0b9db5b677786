"""The semantic cache: what may never be taken for the same, and that it must earn to be believed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks._near_duplicates import adversarial, harmless
from solon.feedback.judging import Item, Verdict
from solon.feedback.semantic import SemanticConfig, SemanticJudge
from solon.feedback.semantic_rule import is_verifiable, may_stand_for
from solon.records import Message, Status


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("it is safe", "it is not safe"),
        ("it is safe", "it is unsafe"),
        ("take 5 grams", "take 50 grams"),
        ("take five grams", "take six grams"),
        ("the dog bites the man", "the man bites the dog"),
        ("Anna paid Boris", "Boris paid Anna"),
        ("call Anna", "call Hana"),
        ("I can help with that", "I can't help with that"),
        ("use `rm -r x`", "use `rm -r y`"),
        ("first mix it , then heat it", "first heat it , then mix it"),
        ("all of them work", "some of them work"),
        ("it costs 5%", "it costs -5%"),
        ("yes", "yes yes yes yes"),
        ("", "hello"),
    ],
)
def test_texts_that_mean_different_things_do_not_stand_for_each_other(one: str, other: str):
    assert not may_stand_for(one, other)
    assert not may_stand_for(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the valve is open .", "The valve is open."),
        ("please look at the old garden today", "please look at the old  garden  today !"),
        ("a long answer about the fine big garden here", "a long answer about the nice big garden here"),
    ],
)
def test_texts_that_differ_in_spaces_stops_or_one_plain_word_may(one: str, other: str):
    assert may_stand_for(one, other)
    assert may_stand_for(other, one)


def test_no_adversarial_near_duplicate_passes_the_rule():
    passed = [pair for pair in adversarial(4000) if may_stand_for(pair.one, pair.other)]
    assert passed == []


def test_most_harmless_ones_do():
    assert sum(may_stand_for(pair.one, pair.other) for pair in harmless(400)) > 300


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_rule_is_symmetric_and_reflexive(one: str, other: str):
    assert may_stand_for(one, one)
    assert may_stand_for(one, other) == may_stand_for(other, one)


def test_prompts_about_numbers_or_code_are_left_alone():
    assert is_verifiable("what is 2 + 2 ?")
    assert is_verifiable("fix this: `x = 1`")
    assert not is_verifiable("how do I say sorry ?")


# -- the cache -------------------------------------------------------------------------------------------------


@dataclass
class Counting:
    """Says yes to everything, unless told otherwise."""

    margins: dict[str, float] = field(default_factory=dict)
    asked: list[Item] = field(default_factory=list)
    name: str = "judge"

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked += items
        return [
            Verdict(status=Status.OK, margin=self.margins.get(i.answers[0], 2.0), questions=1, prompt_tokens=9)
            for i in items
        ]


async def embed(texts: Sequence[str]) -> np.ndarray:
    """Bags of hashed words: near duplicates are near."""
    rows = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().split():
            row[int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big") % 64] += 1
        row += 1e-3
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def item(answer: str, *, prompt: str = "how do I say sorry ?", question: str = "is it kind?") -> Item:
    return Item(
        task="pointwise",
        conversation=(Message(role="user", content=prompt),),
        answers=(answer,),
        principle_id="kind",
        question=question,
    )


CONFIG = SemanticConfig(threshold=0.8, max_error=0.01, verify=0.05)


async def trusted(judge: Counting) -> SemanticJudge:
    """A semantic judge that has seen 320 near duplicates agree."""
    cache = SemanticJudge(judge, embed, CONFIG)
    for n in range(320):
        word = "".join(chr(97 + int(d)) for d in str(n))
        await cache.judge([item(f"this is my answer about {word} , my friend")])
        await cache.judge([item(f"this is my answer about {word} , my friend !")])
    return cache


async def test_nothing_is_served_before_it_has_earned_it():
    judge = Counting()
    cache = SemanticJudge(judge, embed, CONFIG)
    for _ in range(50):
        await cache.judge([item("a kind and long answer to it"), item("A kind and long answer to it .")])
    assert cache.counts.served == 0
    assert not cache.is_trusted


async def test_a_trusted_one_serves_marks_and_shrinks():
    judge = Counting()
    cache = await trusted(judge)
    assert cache.is_trusted
    asked = len(judge.asked)
    verdicts = [
        (await cache.judge([item(f"this is my answer about {w} , my friend ?")]))[0]
        for w in ("b", "c", "d", "e", "f", "g")
    ]
    served = [v for v in verdicts if v.source == "semantic_cache"]
    assert len(served) >= 4
    assert len(judge.asked) == asked + len(verdicts) - len(served)
    assert all(0 < (v.margin or 0) < 2.0 and v.questions == 0 for v in served)


async def test_another_prompt_question_or_order_is_another_matter():
    cache = await trusted(Counting())
    served = cache.counts.served
    await cache.judge([item("this is my answer about b , my friend ?", prompt="how do I say no ?")])
    await cache.judge([item("this is my answer about b , my friend ?", question="is it brief?")])
    assert cache.counts.served == served


async def test_what_is_found_wrong_turns_it_off():
    judge = Counting()
    cache = await trusted(judge)
    for n in range(400):
        text = f"this is my answer about {chr(98 + n % 8)} , my friend {'?' * (n % 7 + 1)}"
        judge.margins[text] = -2.0
        await cache.judge([item(text)])
        if not cache.is_trusted:
            break
    assert not cache.is_trusted
    served = cache.counts.served
    await cache.judge([item("this is my answer about d , my friend .")])
    assert cache.counts.served == served
