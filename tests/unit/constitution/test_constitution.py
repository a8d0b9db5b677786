from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.constitution.constitution import Constitution
from solon.constitution.file import format_yaml, parse_yaml
from solon.constitution.rules import Aggregation, PrincipleSampling, Weighed
from solon.errors import InputError
from solon.verdicts import Task
from tests.unit.fakes import make_prompt

ROOT = Path(__file__).parents[3]
TASKS: tuple[Task, ...] = ("pairwise", "pointwise", "predicate", "score")
GOOD = """\
schema: solon.constitution/v1
id: core
version: "1.0"
principles:
  - {id: kind, pointwise_question: is it kind, pairwise_question: which is kinder}
  - {id: brief, weight: 0.5, pointwise_question: is it brief, pairwise_question: which is briefer}
"""

FULL = """\
schema: solon.constitution/v1
id: full
version: "1.0"
preamble: judge fairly
aggregation: {method: min, tie_band: 0.2}
sampling: {mode: k_random, k: 2, seed_scope: prompt}
principles:
  - id: kind
    severity: hard
    pairwise_question: which is kinder
    pointwise_question: is it kind
    predicates:
      - {id: greets, question: does it greet}
      - {id: insults, question: does it insult, polarity: -1}
    score_anchors: {1: rude, 2: cold, 3: kind}
    critique_request: say what is unkind
    revision_request: make it kind
    examples: [{prompt: hi, good: hello, bad: go away}]
  - id: truthful
    applies_if: {tags_any: [fact]}
    pairwise_question: which is truer
    pointwise_question: is it true
    predicates: [{id: lies, question: does it lie, polarity: -1}]
    score_anchors: {1: made up, 2: right}
    critique_request: say what is false
    revision_request: make it true
tests:
  - {prompt: hi, a: hello, b: go away, expect: a, principle: kind}
  - {prompt: what color is it, a: red, b: blue, expect: tie, tags: [fact]}
"""


def load(tmp_path: Path, text: str | bytes) -> Constitution:
    path = tmp_path / "constitution.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Constitution.load(path)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "constitution.yaml" in message
    assert "\n" not in message
    return message


def test_a_good_file_loads(tmp_path: Path):
    constitution = load(tmp_path, GOOD)
    assert [p.id for p in constitution.principles] == ["kind", "brief"]
    assert constitution.principles[1].weight == 0.5


def test_the_shipped_nursery_constitution_loads():
    path = Path(__file__).parents[3] / "nursery" / "constitution.yaml"
    assert Constitution.load(path).for_task("pointwise")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path):
    assert load(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()).hash == load(tmp_path, GOOD).hash


def test_the_hash_ignores_comments_and_key_order_and_sees_every_text(tmp_path: Path):
    hash_ = load(tmp_path, GOOD).hash
    reordered = yaml.safe_dump(dict(reversed(yaml.safe_load(GOOD).items())))
    assert load(tmp_path, "# a comment\n" + reordered).hash == hash_
    for old, new in [("kinder", "kinder still"), ("0.5", "0.25"), ('"1.0"', '"1.1"'), ("id: core", "id: other")]:
        assert load(tmp_path, GOOD.replace(old, new)).hash != hash_


def test_the_hash_does_not_change_between_releases(tmp_path: Path):
    assert load(tmp_path, GOOD).hash == "1250fb55050cb5f8978d0b97c552524db3f9e569349c194654fa66d5ee15c855"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("version:", "versoin:"), ["unknown key `versoin`", "did you mean `version`", "`version` is missing"]),
        (("weight: 0.5", "wieght: 0.5"), ["`principles.1.wieght`", "did you mean `weight`"]),
        (("id: brief", "id: kind"), ["'kind' occurs twice", "rename one"]),
        (("id: brief", "id: Brief Answers"), ["principles.1.id", "'Brief Answers'"]),
        (("weight: 0.5", "weight: 0"), ["principles.1.weight", "got 0", "greater than 0"]),
        (("weight: 0.5", "weight: .nan"), ["principles.1.weight", "got nan"]),
        (("weight: 0.5", "weight: .inf"), ["principles.1.weight", "got inf"]),
        (("weight: 0.5", "weight: 1.0e+300"), ["principles.1.weight", "less than or equal"]),
        (('"1.0"', "1.0"), ["`version` got 1.0", "expected text", "quotes"]),
        (('"1.0"', "2024-01-31"), ["`version` got datetime.date", "quotes"]),
        (("id: brief", "id: 2024-01-31"), ["principles.1.id", "quotes"]),
        (("solon.constitution/v1", "solon.constitution/v9"), ["schema", "v1"]),
        ((GOOD[GOOD.index("principles") :], "principles: []\n"), ["principles", "at least 1"]),
        ((GOOD[GOOD.index("principles") :], "principles: 7\n"), ["principles", "got 7"]),
        (("is it brief", "' '"), []),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, change: tuple[str, str], words: list[str]):
    text = GOOD.replace(*change)
    assert text != GOOD
    if not words:
        assert load(tmp_path, text)
        return
    message = refusal(tmp_path, text)
    assert [word for word in words if word not in message] == []


def test_mistakes_are_explained_in_plain_words(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "id: x\nversion: 1\nprinciples:\n  - {id: Big One, pointwise_question: 3}\n  - {id: b, weigth: 1}\n"
    )
    with pytest.raises(InputError) as caught:
        Constitution.load(path)
    message = str(caught.value)
    assert "`schema` is missing; it is required, with the value `solon.constitution/v1`" in message
    assert "`principles.0.id` got 'Big One', expected text of the pattern ^[a-z0-9]" in message
    assert "`principles.0.pointwise_question` got 3, expected text; put it in quotes" in message
    assert "at least" not in message
    for word in ("Tuple", "String", "valid string", "not 0"):
        assert word not in message
    path.write_text("schema: solon.constitution/v1\nid: x\nversion: '1'\nprinciples: []\n")
    with pytest.raises(InputError, match=r"`principles` got \[\], expected at least 1 of them"):
        Constitution.load(path)


def test_a_principle_without_any_question_is_refused(tmp_path: Path):
    assert "has no question" in refusal(tmp_path, GOOD + "  - {id: mute, pairwise_question: ' '}\n")


def test_a_key_written_twice_is_refused_with_its_line(tmp_path: Path):
    message = refusal(tmp_path, GOOD + "id: other\n")
    assert "line 7, column 1" in message
    assert "`id` occurs twice" in message
    assert "`weight` occurs twice" in refusal(tmp_path, GOOD.replace("weight: 0.5", "weight: 0.5, weight: 1"))


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00",
        b"\x00",
        "",
        "just words",
        "- a\n- b\n",
        "{",
        "a: [1, 2",
        "a: b: c",
        "\tid: x",
        "? [a, b]\n: c",
        "!!python/object/apply:os.system ['true']",
        "id: !!timestamp nonsense",
        "id: !!bool maybe",
        "id: !!int ''",
        "id: !!float x",
        "version: 2024-13-45",
        "id: " + "9" * 5000,
        "id: &a [*a]",
        "&a {id: *a, schema: *a}",
        "[" * 500,
        '{"id": "\\ud800"}',
        "<<: 3",
        "*unknown",
    ],
)
def test_a_file_that_is_no_constitution_is_refused_in_one_line(tmp_path: Path, text: str | bytes):
    assert len(refusal(tmp_path, text)) < 1000 + len(str(tmp_path))


def test_half_a_character_in_a_text_is_refused(tmp_path: Path):
    assert "line 7, column 11: half a character" in refusal(tmp_path, GOOD + 'preamble: "\\ud800"\n')
    assert load(tmp_path, GOOD + 'preamble: "\\ud83d\\ude00"\n').preamble == "\N{GRINNING FACE}"


def test_aliases_that_explode_are_refused_at_once_and_briefly(tmp_path: Path):
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    for text in (bomb, bomb + "principles: *a11\nid: *a11\n"):
        message = refusal(tmp_path, text)
        assert len(message) < 1500 + len(str(tmp_path))
        assert "more" in message


def test_principles_may_share_text_by_alias(tmp_path: Path):
    text = GOOD + "  - &base {id: a, pointwise_question: ok}\n  - {<<: *base, id: b}\n"
    assert [p.id for p in load(tmp_path, text).principles[2:]] == ["a", "b"]


@pytest.mark.parametrize("place", ["missing.yaml", "", "a\0b", "x" * 5000])
def test_an_unreadable_path_is_an_input_error(tmp_path: Path, place: str):
    with pytest.raises(InputError, match="constitution"):
        Constitution.load(tmp_path / place)


def test_a_task_that_a_principle_cannot_be_asked_about_names_the_principle(tmp_path: Path):
    constitution = load(tmp_path, GOOD.replace("pairwise_question: which is briefer", "kind: style"))
    assert len(constitution.for_task("pointwise")) == 2
    with pytest.raises(InputError, match=r"brief has no pairwise_question.*feedback\.task"):
        constitution.for_task("pairwise")


@pytest.mark.parametrize(
    ("rule", "tags", "applies"),
    [
        ("{}", [], True),
        ("{tags_any: [fact, harm]}", ["fact"], True),
        ("{tags_any: [fact]}", [], False),
        ("{tags_none: [harm]}", ["harm", "fact"], False),
        ("{tags_any: [fact], tags_none: [harm]}", ["fact", "harm"], False),
    ],
)
def test_tags_decide_whether_a_principle_applies(tmp_path: Path, rule: str, tags: list[str], applies: bool):
    principle = load(tmp_path, GOOD.replace("weight: 0.5", f"applies_if: {rule}")).principles[1]
    assert principle.applies_if(make_prompt("hello", *tags)) is applies


# -- predicates, scores, tests ----------------------------------------------------------------------------------


def full() -> Constitution:
    return Constitution.parse(FULL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("question: does it greet", "qestion: does it greet"), ["`principles.0.predicates.0.qestion`", "`question`"]),
        (("question: does it greet", "question: ' '"), ["principles.0.predicates.0.question", "is blank"]),
        (("id: insults", "id: greets"), ["predicate id 'greets' occurs twice in 'kind'", "rename one"]),
        (("polarity: -1", "polarity: 0"), ["principles.0.predicates.1.polarity", "got 0", "1 or -1"]),
        (("{1: rude, 2: cold, 3: kind}", "{1: rude, 3: kind}"), ["marks [1, 3]", "expected 1, 2, 3"]),
        (("{1: rude, 2: cold, 3: kind}", "{0: rude, 1: kind}"), ["marks [0, 1]"]),
        (("{1: rude, 2: cold, 3: kind}", "{1: rude}"), ["marks [1]", "two of them to nine"]),
        (("{1: rude, 2: cold, 3: kind}", str(dict.fromkeys(range(1, 11), "x"))), ["two of them to nine"]),
        (("{1: rude, 2: cold, 3: kind}", "{1: rude, 2: ' '}"), ["mark 2 has no text"]),
        (("{1: rude, 2: cold, 3: kind}", '{1: rude, "1": cold}'), ["line 15", "occurs twice"]),
        (("{1: rude, 2: cold, 3: kind}", "{1: rude, 0x1: cold}"), ["line 15", "occurs twice"]),
        (("{1: rude, 2: cold, 3: kind}", "{low: rude, high: kind}"), ["score_anchors", "'low'", "a whole number"]),
        (("severity: hard", "severity: hrad"), ["principles.0.severity", "'hrad'", "'hard' or 'soft'"]),
        (("method: min", "method: max"), ["aggregation.method", "'max'", "'lexicographic'"]),
        (("tie_band: 0.2", "tie_band: -1"), ["aggregation.tie_band", "greater than or equal to 0"]),
        (("tie_band", "tie_bnd"), ["unknown key `aggregation.tie_bnd`", "`tie_band`"]),
        (("mode: k_random, k: 2", "mode: k_random"), ["mode 'k_random' with k = None", "it needs one"]),
        (("mode: k_random", "mode: all"), ["mode 'all' with k = 2", "k goes with `k_random`"]),
        (("k: 2,", "k: 0,"), ["sampling.k", "got 0"]),
        (("good: hello", "good: 'go away '"), ["principles.0.examples.0", "the same text"]),
        (("principle: kind", "principle: kindd"), ["`tests.0`", "'kindd'", "did you mean `kind`"]),
        (("principle: kind", "principle: truthful"), ["`tests.0`", "'truthful' does not apply", "tags []"]),
        (("expect: a", "expect: first"), ["tests.0.expect", "'first'", "'a', 'b' or 'tie'"]),
        (("b: go away, expect", "b: hello, expect"), ["tests.0", "`a` and `b` are the same text"]),
        (("prompt: hi, a", "prompt: ' ', a"), ["tests.0.prompt", "is empty"]),
        (("prompt: hi, a", "prompt: [{role: assistant, content: hi}], a"), ["tests.0.prompt", "end with a user turn"]),
        (("prompt: hi, a", "prompt: 7, a"), ["tests.0.prompt", "a int"]),
        (("id: full", "id: ' '"), ["`id`", "is blank"]),
    ],
)
def test_a_mistake_in_the_finer_parts_is_named_with_its_place(
    tmp_path: Path, change: tuple[str, str], words: list[str]
):
    text = FULL.replace(*change, 1)
    assert text != FULL
    message = refusal(tmp_path, text)
    assert [word for word in words if word not in message] == []


def test_a_test_that_no_principle_applies_to_is_refused(tmp_path: Path):
    text = GOOD.replace("{id: kind,", "{id: kind, applies_if: {tags_any: [chat]},")
    text = text.replace("{id: brief,", "{id: brief, applies_if: {tags_none: [fact]},")
    message = refusal(tmp_path, text + "tests: [{prompt: hi, a: x, b: y, expect: a, tags: [fact]}]\n")
    assert "no principle applies to a prompt with the tags ['fact']" in message


def test_a_principle_may_have_facts_alone(tmp_path: Path):
    text = GOOD + "  - {id: c, predicates: [{id: greets, question: does it greet}]}\n"
    assert load(tmp_path, text).principles[2].can("predicate")


def test_a_test_may_hold_a_conversation():
    turns = '[{role: user, content: hi}, {role: assistant, content: "yes?"}, {role: user, content: who are you}]'
    test = Constitution.parse(FULL.replace("prompt: hi, a", f"prompt: {turns}, a")).tests[0]
    assert [(m.role, m.content) for m in test.as_prompt().messages] == [
        ("user", "hi"),
        ("assistant", "yes?"),
        ("user", "who are you"),
    ]
    assert full().tests[0].as_prompt().prompt_id == make_prompt("hi").prompt_id


@pytest.mark.parametrize(
    ("task", "tags", "expected"),
    [
        ("pairwise", [], [("kind", "", "which is kinder", 1)]),
        ("pointwise", ["fact"], [("kind", "", "is it kind", 1), ("truthful", "", "is it true", 1)]),
        (
            "predicate",
            ["fact"],
            [
                ("kind", "greets", "does it greet", 1),
                ("kind", "insults", "does it insult", -1),
                ("truthful", "lies", "does it lie", -1),
            ],
        ),
        ("score", [], [("kind", "", "Which mark describes the answer best? 1: rude. 2: cold. 3: kind.", 1)]),
    ],
)
def test_the_questions_follow_from_the_task_and_the_tags(
    task: Task, tags: list[str], expected: list[tuple[str, str, str, int]]
):
    asked = full().questions_for(task, make_prompt("hello", *tags))
    assert [(one.principle.id, one.question_id, one.question, one.polarity) for one in asked] == expected
    if task == "score":
        assert asked[0].scale == 3


@pytest.mark.parametrize(("task", "key"), [("predicate", "predicates"), ("score", "score_anchors")])
def test_a_principle_without_facts_or_marks_cannot_be_asked_for_them(tmp_path: Path, task: Task, key: str):
    with pytest.raises(InputError, match=f"kind, brief has no {key}.*feedback.task"):
        load(tmp_path, GOOD).questions_for(task, make_prompt("hello"))


# -- the hash ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addition",
    ["aggregation: {method: weighted, tie_band: 0.1}", "sampling: {mode: all}", "tests: []", "aggregation: {}"],
)
def test_defaults_that_are_written_out_do_not_change_the_hash(tmp_path: Path, addition: str):
    assert load(tmp_path, f"{GOOD}{addition}\n").hash == load(tmp_path, GOOD).hash
    spelled = GOOD.replace("{id: kind,", "{id: kind, severity: soft, predicates: [], score_anchors: {}, examples: [],")
    assert load(tmp_path, spelled).hash == load(tmp_path, GOOD).hash


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a document stand that are no section or list."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
    else:
        yield path


CHANGES = {"hard": "soft", "min": "mean", "k_random": None, "prompt": "group", "a": "b", "tie": "a", -1: 1, 0.2: 0.3}
DOCUMENT = yaml.safe_load(FULL)
PLACES = [p for p in places(DOCUMENT) if p[-1] not in ("schema", "mode", "principle") and "tags" not in str(p)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PLACES), st.text("abcdefgh ", min_size=1, max_size=5).filter(str.strip))
def test_every_value_counts_in_the_hash(place: tuple[Any, ...], more: str):
    changed = copy.deepcopy(DOCUMENT)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    old = holder[place[-1]]
    if isinstance(old, int):
        holder[place[-1]] = CHANGES.get(old, old + 1)
    elif place[-1] in ("severity", "method", "seed_scope", "expect", "tie_band"):
        holder[place[-1]] = CHANGES[old]
    else:
        holder[place[-1]] = old + ("x" if place[-1] == "id" else more)
    before = DOCUMENT
    if place[0] == "principles" and place[2:] == ("id",):  # no test may name the old id
        before, changed["tests"] = DOCUMENT | {"tests": []}, []
    assert Constitution.model_validate(changed).hash != Constitution.model_validate(before).hash


def test_another_text_than_the_pinned_one_is_refused_naming_both(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(FULL)
    pinned = full().hash
    assert Constitution.load(path, expected_hash=pinned).hash == pinned
    path.write_text(FULL.replace("judge fairly", "judge harshly"))
    with pytest.raises(InputError) as caught:
        Constitution.load(path, expected_hash=pinned)
    assert pinned in str(caught.value)
    assert Constitution.load(path).hash in str(caught.value)


# -- gaps that matter in real use ---------------------------------------------------------------------------------


def test_gaps_that_matter_in_real_use_are_reported(tmp_path: Path):
    found = load(tmp_path, GOOD).warnings()
    assert found == [
        "no critique_request: kind, brief",
        "no revision_request: kind, brief",
        "no tests: nothing shows whether a judge understands the questions",
    ]
    assert full().warnings() == ["no test of its own: truthful"]
    misspelt = Constitution.parse(FULL.replace("a: hello", "tags: [facts], a: hello"))
    assert "`tests.0`: no principle asks for the tag 'facts' (did you mean `fact`?)" in misspelt.warnings()


# -- weighing ---------------------------------------------------------------------------------------------------

MARGINS = [Weighed(1.0, 3.0), Weighed(-2.0, 1.0), Weighed(9.0, 1.0, is_hard=True)]


@pytest.mark.parametrize(
    ("method", "reward", "preference"),
    [
        ("mean", (1 - 2 + 3) / 3, (1 - 2 + 3) / 3),
        ("weighted", (3 - 2 + 3) / 5, (3 - 2 + 3) / 5),
        ("min", -2.0, 0.5),
        ("lexicographic", (3 - 2) / 4, 3.0),
    ],
)
def test_margins_are_weighted_as_computed_by_hand(method: Any, reward: float, preference: float):
    rule = Aggregation(method=method)
    assert rule.reward(MARGINS, clip=3.0) == pytest.approx(reward)
    assert rule.preference(MARGINS, clip=3.0) == pytest.approx(preference)


weighed = st.builds(Weighed, st.floats(-9, 9), weight=st.floats(0.1, 10), is_hard=st.booleans())
methods = st.sampled_from(["mean", "weighted", "min", "lexicographic"])


@settings(max_examples=100, deadline=None)
@given(methods, st.lists(weighed, min_size=1, max_size=5), st.floats(0.5, 5))
def test_swapping_the_answers_turns_the_sign_of_a_preference(method: Any, found: list[Weighed], clip: float):
    swapped = [Weighed(-one.margin, one.weight, one.is_hard) for one in found]
    rule = Aggregation(method=method)
    assert rule.preference(swapped, clip=clip) == pytest.approx(-rule.preference(found, clip=clip), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(weighed, min_size=1, max_size=5), st.lists(weighed, min_size=1, max_size=5))
def test_no_gain_elsewhere_makes_up_for_a_broken_hard_principle(broken: list[Weighed], whole: list[Weighed]):
    rule = Aggregation(method="lexicographic", tie_band=0.1)
    broken = [*broken, Weighed(-0.2, is_hard=True)]
    whole = [Weighed(abs(one.margin), one.weight, True) if one.is_hard else one for one in whole]
    assert -6 - 1e-9 <= rule.reward(broken, clip=3.0) < rule.reward(whole, clip=3.0) <= 3 + 1e-9


# -- the principles that apply -------------------------------------------------------------------------------------

IDS = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("sampling", "number"),
    [
        (PrincipleSampling(), 5),
        (PrincipleSampling(mode="one_random"), 1),
        (PrincipleSampling(mode="k_random", k=3), 3),
        (PrincipleSampling(mode="k_random", k=9), 5),
    ],
)
def test_as_many_principles_are_drawn_as_the_mode_says(sampling: PrincipleSampling, number: int):
    drawn = sampling.draw(IDS, prompt_id="p", ordinal=3)
    assert len(drawn) == number
    assert drawn <= set(IDS)
    assert drawn == sampling.draw(IDS, prompt_id="p", ordinal=3)


def test_a_prompt_keeps_its_principles_or_gets_others_with_each_group():
    draws = {
        scope: {
            PrincipleSampling(mode="one_random", seed_scope=scope).draw(IDS, prompt_id="p", ordinal=n)
            for n in range(40)
        }
        for scope in ("prompt", "group")
    }
    assert len(draws["prompt"]) == 1
    assert len(draws["group"]) == 5


# -- the constitutions that ship ----------------------------------------------------------------------------------


def test_the_assistant_constitution_is_complete():
    constitution = Constitution.load(ROOT / "examples" / "assistant.yaml")
    assert len(constitution.principles) >= 16
    assert {p.kind for p in constitution.principles} == {"helpful", "honest", "harmless", "safety", "style"}
    assert constitution.warnings() == []
    for task in TASKS:
        assert constitution.for_task(task)
    expected = [test.expect for test in constitution.tests]
    assert abs(expected.count("a") - expected.count("b")) <= 2
    texts = [p.pairwise_question for p in constitution.principles] + [
        p.pointwise_question for p in constitution.principles
    ]
    assert len(set(texts)) == len(texts)
    assert max(len(text.split()) for text in texts) <= 30


def test_the_nursery_constitution_speaks_its_language_and_agrees_with_the_oracles():
    from nursery.language import vocabulary
    from nursery.oracles import adherence

    constitution = Constitution.load(ROOT / "nursery" / "constitution.yaml")
    assert constitution.warnings() == []
    for task in ("pairwise", "pointwise", "predicate"):
        assert constitution.for_task(task)
    said = [text for p in constitution.principles for text in (p.critique_request, p.revision_request)]
    said += [fact.question for p in constitution.principles for fact in p.predicates]
    said += [text for p in constitution.principles for e in p.examples for text in (e.prompt, e.good, e.bad)]
    said += [m.content for test in constitution.tests for m in test.as_prompt().messages]
    said += [text for test in constitution.tests for text in (test.a, test.b)]
    assert {word for text in said for word in text.split()} - set(vocabulary()) == set()
    for test in constitution.tests:
        kept = [adherence(test.as_prompt(), answer) for answer in (test.a, test.b)]
        names = [p.id for p in constitution.tested_by(test)]
        better = sum(kept[0][name] - kept[1][name] for name in names)
        assert {"a": better > 0, "b": better < 0}[test.expect], test


# -- any input --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("examples")


yaml_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_never_crash(folder: Path, data: bytes):
    refusal(folder, data)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["id", "version", "preamble", "principles", "schema", "x"]), yaml_values),
    st.dictionaries(st.sampled_from(["id", "weight", "kind", "applies_if", "pointwise_question"]), yaml_values),
)
def test_any_values_in_a_constitution_are_accepted_or_refused(
    folder: Path, top: dict[str, Any], principle: dict[str, Any]
):
    good = yaml.safe_load(GOOD)
    good["principles"][0] |= principle
    with contextlib.suppress(InputError):
        assert len(load(folder, yaml.safe_dump(good | top)).hash) == 64


def sections(good: Any) -> st.SearchStrategy[Any]:
    """The document with one part of it replaced by anything."""

    def put(place: tuple[Any, ...], value: Any) -> Any:
        changed = copy.deepcopy(good)
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
        return changed

    inner = [p[:n] for p in places(good) for n in range(1, len(p) + 1)]
    return st.builds(put, st.sampled_from(sorted(set(inner), key=str)), yaml_values)


@settings(max_examples=40, deadline=None)
@given(sections(DOCUMENT))
def test_any_part_of_a_constitution_is_accepted_or_refused(document: dict[str, Any]):
    with contextlib.suppress(InputError):
        constitution = Constitution.parse(yaml.safe_dump(document))
        assert len(constitution.hash) == 64
        assert all(
            constitution.questions_for(t, make_prompt("hi")) is not None
            for t in TASKS
            if all(p.can(t) for p in constitution.principles)
        )


@settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from("ab:-{}[]&*?!|>'\"#\n ,1%@"), max_size=60))
def test_any_text_is_accepted_or_refused(text: str):
    with contextlib.suppress(InputError):
        Constitution.parse(text)
    with contextlib.suppress(InputError):
        Constitution.parse(GOOD + text)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3), st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    )
)
def test_yaml_that_is_written_reads_back_the_same(content: dict[str, str]):
    assert parse_yaml(format_yaml({"_": content}), what="c")["_"] == content
