from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.constitution import Constitution
from solon.errors import InputError
from tests.unit.fakes import make_prompt

GOOD = """\
schema: solon.constitution/v1
id: core
version: "1.0"
principles:
  - {id: kind, pointwise_question: is it kind, pairwise_question: which is kinder}
  - {id: brief, weight: 0.5, pointwise_question: is it brief, pairwise_question: which is briefer}
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


def test_the_nursery_constitution_that_ships_loads():
    path = Path(__file__).parents[2] / "nursery" / "constitution.yaml"
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
        (("id: brief", "id: kind"), ["'kind' stands twice", "rename one"]),
        (("id: brief", "id: Brief Answers"), ["principles.1.id", "'Brief Answers'"]),
        (("weight: 0.5", "weight: 0"), ["principles.1.weight", "got 0", "greater than 0"]),
        (("weight: 0.5", "weight: .nan"), ["principles.1.weight", "got nan"]),
        (("weight: 0.5", "weight: .inf"), ["principles.1.weight", "got inf"]),
        (("weight: 0.5", "weight: 1.0e+300"), ["principles.1.weight", "less than or equal"]),
        (('"1.0"', "1.0"), ["`version` got 1.0", "valid string", "quotes"]),
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


def test_a_principle_without_any_question_is_refused(tmp_path: Path):
    assert "has no question" in refusal(tmp_path, GOOD + "  - {id: mute, pairwise_question: ' '}\n")


def test_a_key_written_twice_is_refused_with_its_line(tmp_path: Path):
    message = refusal(tmp_path, GOOD + "id: other\n")
    assert "line 7, column 1" in message
    assert "`id` stands twice" in message
    assert "`weight` stands twice" in refusal(tmp_path, GOOD.replace("weight: 0.5", "weight: 0.5, weight: 1"))


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
def test_what_is_no_constitution_is_refused_in_one_line(tmp_path: Path, text: str | bytes):
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
def test_any_values_in_a_constitution_are_taken_or_refused(
    folder: Path, top: dict[str, Any], principle: dict[str, Any]
):
    good = yaml.safe_load(GOOD)
    good["principles"][0] |= principle
    with contextlib.suppress(InputError):
        assert len(load(folder, yaml.safe_dump(good | top)).hash) == 64
