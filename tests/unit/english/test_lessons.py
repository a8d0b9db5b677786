"""Lessons and held-out questions of the specialised judge."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest

from english.answers import Answer, openings_for, variant
from english.lessons import CONSTITUTION_PATH, SURE, Examiner, draw_passages, heldout_questions, log_odds
from english.prompts import draw, draw_many, wishes_of, with_wishes
from english.requests import Request
from english.teaching import CHANNELS, MOST_WEIGHT, Asked, Passage, balanced, lay
from english.wishes import WISHES, keeps
from solon.constitution.constitution import Constitution
from solon.engines.fake import FakeTokenizer


class Spaced(FakeTokenizer):
    """Its words bring their space along, as those of real vocabularies do."""

    def decode(self, token_ids: Sequence[int], *, is_raw: bool = False) -> str:
        text = super().decode(token_ids)
        return f" {text}" if is_raw else text


TOKENIZER = Spaced(
    "User: Answer: Answer A: B: Question: [cut off] Verdict: A B yes no How do I rest? Does the Which answer"
    " You can rest with music and a walk. walk in the park. "
    + " ".join(phrasing.format(x="music") for wish in WISHES.values() for phrasing in wish.phrasings)
)
REQUEST = Request("How do I rest?", "rest", ("sleep", "bed"), ("sleep", "bed", "rest"))
WITH_MUSIC = Answer("You can rest with music and a walk.")
WITHOUT = Answer("You can rest with a walk in the park.")
BOTH = (WITH_MUSIC.text, WITHOUT.text)


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


def test_passages_are_the_same_for_the_same_seed_and_both_verdicts_are_taught(examiner: Examiner):
    rng = random.Random(1)
    requests = [draw(rng, "train")[0] for _ in range(40)]
    answers = [rng.choice([WITH_MUSIC, WITHOUT, Answer("It is late. Would you like some tea?")]) for _ in requests]
    passages = draw_passages(examiner, requests, answers, 100, seed=5)
    assert passages == draw_passages(examiner, requests, answers, 100, seed=5)
    asked = [one for passage in passages for one in passage.questions]
    assert {one.margin > 0 for one in asked} == {True, False}
    assert {one.label_ids for one in asked} == {examiner.prompts.pair_ids, examiner.prompts.bool_ids}
    assert max(len(passage.questions) for passage in passages) >= 4


def test_context_and_question_of_a_passage_are_what_a_run_sends(examiner: Examiner):
    prompt = with_wishes(random.Random(0), REQUEST, ["mention:music", "plain"])
    passage = examiner.passage(random.Random(0), prompt, (WITH_MUSIC,), BOTH)
    assert passage is not None
    sent = {examiner.lesson(prompt, (WITH_MUSIC,), name).question.prompt_token_ids for name in ("mention", "plain")}
    assert sent <= {passage.context + one.token_ids for one in passage.questions}


def test_two_answers_that_are_alike_make_no_passage(examiner: Examiner):
    prompt = with_wishes(random.Random(0), REQUEST, ["mention:music", "plain"])
    assert examiner.passage(random.Random(0), prompt, (WITHOUT, WITHOUT), BOTH) is None


def test_words_of_the_answers_are_asked_for_that_the_user_did_not_name(examiner: Examiner):
    prompt = with_wishes(random.Random(0), REQUEST, ["plain", "sentence"])
    passage = examiner.passage(random.Random(0), prompt, (WITH_MUSIC,), BOTH)
    assert passage is not None
    asked = [examiner.lesson(prompt, (WITH_MUSIC,), name).question.prompt_token_ids for name in ("plain", "sentence")]
    assert len({passage.context + one.token_ids for one in passage.questions} - set(asked)) >= 4


def test_held_out_questions_are_about_unedited_answers_and_leave_out_pairs_without_a_difference(examiner: Examiner):
    prompt = with_wishes(random.Random(0), REQUEST, ["mention:music", "avoid:bed"])
    found = heldout_questions(examiner, [prompt], [(WITH_MUSIC, WITHOUT)])
    assert {key: len(lessons) for key, lessons in found.items()} == {
        "pointwise/mention": 2, "pairwise/mention": 1, "pointwise/avoid": 2,
    }  # fmt: skip


def test_most_harmful_requests_get_an_opening_and_few_others_do():
    prompts = draw_many(400, seed=2, part="train")
    openings = openings_for(random.Random(0), prompts)
    opened: dict[bool, list[bool]] = {True: [], False: []}
    for prompt, opening in zip(prompts, openings, strict=True):
        opened["declines" in wishes_of(prompt)].append(bool(opening))
    assert sum(opened[True]) / len(opened[True]) > 0.75
    assert 0.02 < sum(opened[False]) / len(opened[False]) < 0.12


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
    answers = (WITHOUT, Answer("Would you like some music? " + "One " * 12))
    passage = examiner.passage(random.Random(0), prompt, answers, BOTH)
    assert passage is not None
    short = [hint.kept for hint in passage.hints if hint.channel == CHANNELS["within:12"]]
    assert short[-1] == 0
    assert all(short[: len(short) // 2])
    assert max(hint.place for hint in passage.hints) < len(passage.context)
    assert {hint.channel for hint in passage.hints} >= {CHANNELS[name] for name in ("plain", "question", "declines")}


def test_the_word_that_the_user_named_has_a_hint_for_each_answer(examiner: Examiner):
    prompt = with_wishes(random.Random(0), REQUEST, ["mention:music", "plain"])
    passage = examiner.passage(random.Random(0), prompt, (WITHOUT, WITH_MUSIC), BOTH)
    assert passage is not None
    named = {hint.channel: hint for hint in passage.hints if hint.channel in (CHANNELS["A:named"], CHANNELS["B:named"])}
    assert named[CHANNELS["A:named"]].kept < 0.5 < named[CHANNELS["B:named"]].kept
    (place,) = {hint.place for hint in named.values()}
    assert passage.context[place] in TOKENIZER.encode("music music.")
    about = [hint for hint in passage.hints if hint.channel == CHANNELS["better:mention"]]
    assert [hint.kept < 0.5 for hint in about] == [True, True]
    assert about[0].place == place
    assert passage.context[about[1].place] == TOKENIZER.eos_token_id


def test_an_answer_near_the_limit_of_a_measured_wish_has_smaller_log_odds():
    far, near = "I love this happy, wonderful, great day!", "I like this nice day, thanks a lot."
    assert log_odds("friendly", far) == SURE
    assert 0 < abs(log_odds("friendly", near)) < SURE
    assert (log_odds("friendly", near) > 0) == keeps("friendly", near)
    assert log_odds("sentence", "It is late now.") == SURE


def test_a_question_sees_its_context_and_itself_at_the_positions_it_has_alone():
    passage = Passage((5, 6, 7), (Asked((8, 9), (1, 2), 1.0), Asked((10,), (1, 2), -1.0)))
    laid = lay([passage])
    assert laid.ids_BT[0, :6].tolist() == [5, 6, 7, 8, 9, 10]
    assert laid.positions_BT[0, :6].tolist() == [0, 1, 2, 3, 4, 3]
    assert laid.mask_BTT[0, 5, :6].tolist() == [True, True, True, False, False, True]
    assert laid.mask_BTT[0, 4, :6].tolist() == [True, True, True, True, True, False]
    assert [ends.tolist() for ends in laid.ends_N] == [[0, 0], [4, 5]]


def test_both_verdicts_of_a_kind_of_question_weigh_the_same_and_none_weighs_too_much():
    margins = {"1/topic": [5.0, 5.0, -5.0, -5.0, -5.0, -5.0], "1/offers": [5.0, *[-5.0] * 99]}
    asked = [Asked((1, 2), (3, 4), margin, kind=kind) for kind, found in margins.items() for margin in found]
    (passage,) = balanced([Passage((0,), tuple(asked))])
    sums: dict[tuple[str, bool], float] = defaultdict(float)
    for one in passage.questions:
        sums[one.kind, one.margin > 0] += one.weight
    assert sums["1/topic", True] == pytest.approx(sums["1/topic", False]) == pytest.approx(3)
    assert sums["1/offers", True] == MOST_WEIGHT
