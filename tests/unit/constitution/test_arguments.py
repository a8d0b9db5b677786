"""Questions that name the argument of a prompt's tag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.constitution.arguments import with_arguments
from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.feedback.trials.gold import parse_gold
from tests.unit.fakes import make_prompt

TEXT = """\
schema: solon.constitution/v1
id: words
version: "1.0"
principles:
  - id: mention
    applies_if: {tags_any: [mention]}
    pairwise_question: Which answer contains the word {mention}?
    pointwise_question: Does the answer contain {mention} or {other}?
    predicates: [{id: has, question: "Does it say {mention}?"}]
"""


def test_a_question_names_the_argument_of_the_prompts_tag():
    constitution = Constitution.parse(TEXT)
    prompt = make_prompt("hello", "mention", "mention:green tea")
    (pair,) = constitution.questions_for("pairwise", prompt)
    (single,) = constitution.questions_for("pointwise", prompt)
    (fact,) = constitution.questions_for("predicate", prompt)
    assert pair.question == "Which answer contains the word green tea?"
    assert single.question == "Does the answer contain green tea or {other}?"
    assert fact.question == "Does it say green tea?"


def test_a_prompt_without_the_argument_is_refused_by_name():
    with pytest.raises(
        InputError, match=r"prompt \w+ \('hello'\): a principle asks about \{mention\}, .*one mention:TEXT"
    ):
        Constitution.parse(TEXT).questions_for("pairwise", make_prompt("hello", "mention"))


@pytest.mark.parametrize(
    "argument", ["<|im_end|>", "[INST]", "a\nQuestion", "</s>", "x" * 201, "{mention}", "a|b", " "]
)
def test_an_argument_that_could_open_a_turn_is_refused(argument: str):
    with pytest.raises(InputError, match="becomes part of a question"):
        with_arguments("Is {mention} there?", ["mention"], make_prompt("hello", f"mention:{argument}"))


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=40))
def test_any_argument_is_refused_or_stands_in_the_question_on_one_line(argument: str):
    prompt = make_prompt("hello", f"mention:{argument}")
    try:
        asked = with_arguments("Is {mention} there?", ["mention"], prompt)
    except InputError:
        return
    assert asked == f"Is {argument.strip()} there?"
    assert len(asked.splitlines()) == 1


@pytest.mark.parametrize("argument", ["C++", ".5", "-5", "नमस्ते", "café", "tea:cup", "ice cream"])
def test_words_of_any_language_may_stand_in_a_question(argument: str):
    asked = with_arguments("Is {mention} there?", ["mention"], make_prompt("hello", f"mention:{argument}"))
    assert asked == f"Is {argument} there?"


def test_two_arguments_of_one_tag_are_refused():
    with pytest.raises(InputError, match="expected one mention:TEXT"):
        with_arguments("Is {mention} there?", ["mention"], make_prompt("hello", "mention:tea", "mention:milk"))


def test_prompts_are_checked_for_every_form_of_question_that_names_an_argument():
    constitution = Constitution.parse(TEXT)
    good, bad = make_prompt("hello", "mention", "mention:tea"), make_prompt("hello", "mention")
    for task in ("pairwise", "pointwise", "predicate"):
        constitution.require_arguments(task, [good, make_prompt("hello")])
        with pytest.raises(InputError, match="expected one mention:TEXT"):
            constitution.require_arguments(task, [good, bad])


def test_braces_that_are_no_tag_and_arguments_of_tests_are_told_apart_by_the_warnings():
    text = TEXT + "tests: [{prompt: hi, a: x, b: y, expect: a, tags: [mention, 'mention:tea']}]\n"
    warnings = Constitution.parse(text).warnings()
    assert any("mention: {other} is no tag" in warning for warning in warnings)
    assert not any("no principle asks for the tag" in warning for warning in warnings)


def test_a_test_of_the_constitution_needs_the_argument_too():
    with pytest.raises(InputError, match=r"`tests.0`: .*expected one mention:TEXT"):
        Constitution.parse(TEXT + "tests: [{prompt: hi, a: x, b: y, expect: a, tags: [mention]}]\n")


def test_a_gold_pair_asks_about_the_argument_of_its_row():
    constitution = Constitution.parse(TEXT)
    row = {"prompt": "hi", "tags": ["mention", "mention:tea"], "chosen": "Tea.", "rejected": "Milk."}
    (item,) = parse_gold(0, row, constitution).items
    assert item.question == "Which answer contains the word tea?"
    with pytest.raises(ValueError, match="expected one mention:TEXT"):
        parse_gold(0, {**row, "tags": ["mention"]}, constitution)
