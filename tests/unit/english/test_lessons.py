"""Lessons and exams of the specialised judge."""

from __future__ import annotations

import random

import pytest

from english.answers import Answer, openings_for, variant
from english.lessons import CONSTITUTION_PATH, SURE, Examiner, draw_lessons, exam
from english.prompts import draw, draw_many, wishes_of, with_wishes
from english.requests import Request
from english.teaching import CHANNELS
from english.wishes import WISHES
from solon.constitution.constitution import Constitution
from solon.engines.fake import FakeTokenizer

TOKENIZER = FakeTokenizer(
    "User: [The answer] [Answer A] [Answer B] [The question] [cut off] Verdict: A B yes no music walk"
)
REQUEST = Request("How do I rest?", "rest", ("sleep", "bed"))
WITH_MUSIC = Answer("You can rest with music and a walk.")
WITHOUT = Answer("You can rest with a walk in the park.")


@pytest.fixture
def examiner() -> Examiner:
    return Examiner(TOKENIZER)


def test_the_constitution_has_a_principle_for_every_wish():
    constitution = Constitution.load(CONSTITUTION_PATH)
    assert {principle.id for principle in constitution.principles} == set(WISHES)


def test_a_lesson_carries_the_verdict_of_the_program(examiner: Examiner):
    prompt = with_wishes(random.Random(0), REQUEST, ["mention:music", "plain"])
    assert examiner.lesson(prompt, (WITH_MUSIC,), "mention").margin == SURE
    assert examiner.lesson(prompt, (WITHOUT,), "mention").margin == -SURE
    assert examiner.lesson(prompt, (WITH_MUSIC, WITHOUT), "mention").margin == SURE
    assert examiner.lesson(prompt, (WITHOUT, WITH_MUSIC), "mention").margin == -SURE
    assert examiner.lesson(prompt, (WITHOUT, WITHOUT), "mention").margin == 0


def test_lessons_are_the_same_for_the_same_seed_and_both_verdicts_are_taught(examiner: Examiner):
    rng = random.Random(1)
    requests = [draw(rng, "train")[0] for _ in range(40)]
    answers = [rng.choice([WITH_MUSIC, WITHOUT, Answer("It is late. Would you like some tea?")]) for _ in requests]
    lessons = draw_lessons(examiner, requests, answers, 200, seed=5)
    assert lessons == draw_lessons(examiner, requests, answers, 200, seed=5)
    assert {one.lesson.margin > 0 for one in lessons if one.lesson.margin} == {True, False}
    assert {one.lesson.question.label_ids for one in lessons} == {examiner.prompts.pair_ids, examiner.prompts.bool_ids}


def test_an_exam_asks_about_unedited_answers_and_leaves_out_pairs_without_a_difference(examiner: Examiner):
    prompt = with_wishes(random.Random(0), REQUEST, ["mention:music", "avoid:bed"])
    found = exam(examiner, [prompt], [(WITH_MUSIC, WITHOUT)])
    assert {key: len(lessons) for key, lessons in found.items()} == {
        "pointwise/mention": 2, "pairwise/mention": 1, "pointwise/avoid": 2,
    }  # fmt: skip


def test_openings_are_given_to_harmful_requests_only():
    prompts = draw_many(300, seed=2, part="train")
    for prompt, opening in zip(prompts, openings_for(random.Random(0), prompts), strict=True):
        assert not opening or "declines" in wishes_of(prompt)


def test_variants_of_an_answer_differ_in_length_and_some_are_the_answer_itself():
    answer = Answer("One two three. Four five six. Seven eight", is_cut=True)
    other = Answer("Is it so? Yes.")
    found = {variant(random.Random(seed), answer, other) for seed in range(60)}
    assert answer in found
    assert len(found) > 10
    assert any(one.text.endswith("Is it so?") for one in found)
    assert all(isinstance(variant(random.Random(s), Answer(""), Answer("")), Answer) for s in range(30))


def test_hints_say_at_words_of_the_answer_what_it_would_keep_if_it_ended_there(examiner: Examiner):
    prompt = with_wishes(random.Random(0), REQUEST, ["mention:music", "plain"])
    one = examiner.hinted(prompt, (WITHOUT, WITH_MUSIC), "mention")
    mentioned = [hint.kept for hint in one.hints if hint.channel == CHANNELS["mention"]]
    assert mentioned[-1]
    assert not any(mentioned[: len(mentioned) // 2])
    ends = {hint.place for hint in one.hints}
    assert max(ends) < len(one.lesson.question.prompt_token_ids)
    assert {hint.channel for hint in one.hints} >= {CHANNELS[name] for name in ("plain", "question", "declines")}
