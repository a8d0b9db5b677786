"""Rows of prompts and answers: every form that is read, and a reason for every row that cannot be."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError
from solon.feedback.labelling.dataset import load_answers, parse_row
from solon.files.data_config import ReadConfig


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


GOOD = {"prompt": "hi", "answers": ["hello", "go away"]}


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "hi", "answers": ["hello", "go away"]},
        {"prompt": "hi", "completions": ["hello", "go away"]},
        {"prompt": "hi", "responses": ["hello", "go away"]},
        {"prompt": "hi", "chosen": "hello", "rejected": "go away"},
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "rejected": [{"role": "assistant", "content": "go away"}],
        },
    ],
)
def test_every_form_of_a_row_is_the_same_prompt_and_answers(raw: Any):
    row = parse_row(1, raw)
    assert [m.content for m in row.prompt.messages] == ["hi"]
    assert row.answers == ("hello", "go away")
    assert row.row_id == parse_row(2, GOOD).row_id


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def test_two_whole_conversations_share_their_prompt():
    row = parse_row(1, {"chosen": turns("hi", "hello"), "rejected": turns("hi", "go away")})
    assert row.row_id == parse_row(2, GOOD).row_id
    longer = {"chosen": turns("hi", "hello", "why ?", "so"), "rejected": turns("hi", "hello", "why ?", "no")}
    assert [m.content for m in parse_row(1, longer).prompt.messages] == ["hi", "hello", "why ?"]
    assert parse_row(1, longer).answers == ("so", "no")
    same = parse_row(1, {"chosen": turns("hi", "hello"), "rejected": turns("hi", "hello")})
    assert (len(same.prompt.messages), same.answers) == (1, ("hello", "hello"))


def test_messages_written_as_json_are_messages_in_a_table_of_answers(tmp_path: Path):
    whole = {"chosen": json.dumps(turns("hi", "hello")), "rejected": json.dumps(turns("hi", "go away"))}
    path = write(tmp_path / "a.jsonl", whole)
    found = load_answers(path, least=2)
    assert found.rows[0].row_id == parse_row(2, GOOD).row_id
    assert found.notes == (
        f"{path}: 1 row held messages as JSON, read as messages; data.json_messages = false takes them as text",
    )


def test_answers_are_read_from_any_format_and_column(tmp_path: Path):
    (tmp_path / "a.csv").write_text("question,chosen,rejected,id\nhi,hello,go away,x\n")
    (row,) = load_answers(tmp_path / "a.csv", least=2, read=ReadConfig(column="question")).rows
    assert (row.row_id, row.answers, row.place) == ("x", ("hello", "go away"), "line 2")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps(GOOD) + "\n")
    (folder,) = (load_answers(source, least=2) for source in (f"{tmp_path}/*.gz",))
    assert folder.rows[0].answers == ("hello", "go away")


def test_rows_of_several_files_have_numbers_of_their_own(tmp_path: Path):
    for name, text in (("a", "hi"), ("b", "ho")):
        write(tmp_path / f"{name}.jsonl", {**GOOD, "prompt": text})
    rows = load_answers(tmp_path, least=2).rows
    assert [(row.number, row.place) for row in rows] == [(1, "line 1 of a.jsonl"), (2, "line 1 of b.jsonl")]


def test_a_row_without_an_id_gets_one_from_its_texts_and_a_given_one_is_kept():
    assert parse_row(1, GOOD).row_id != parse_row(1, {**GOOD, "answers": ["go away", "hello"]}).row_id
    assert parse_row(1, {**GOOD, "id": 7}).row_id == "7"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"prompt": "hi", "answers": ["hello"]}, "has 1 answer, expected at least 2"),
        ({"prompt": "hi", "answers": "hello"}, "`answers` is a str, expected a list"),
        ({"prompt": "hi", "answers": ["hello", 3]}, "has the answer 3"),
        ({"prompt": "hi", "chosen": "hello"}, "has the answer None"),
        ({"prompt": "hi", "answers": ["hello", "\ud800"]}, "half a character"),
        ({"answers": ["hello", "go away"]}, "has no `prompt`"),
        ({"prompt": "hi", "answers": ["a", "b"], "id": 1.5}, "`id` is a float"),
        ({"chosen": turns("hi", "a"), "rejected": turns("ho", "b")}, "begin with different turns"),
        (
            {"chosen": turns("hi", "a", "b", "c"), "rejected": turns("hi", "b")},
            "`chosen` has 3 turns after the 1 that",
        ),
        ({"chosen": turns("hi"), "rejected": turns("hi")}, "`chosen` does not end with a turn of the assistant"),
        (
            {"chosen": "Human: hi", "rejected": "Human: ho"},
            "has no `prompt`, and `chosen` and `rejected` are plain text",
        ),
        ("{not json", "not JSON"),
        ([1, 2], "holds a list"),
    ],
)
def test_an_unlabelable_row_is_kept_with_the_reason(tmp_path: Path, raw: Any, reason: str):
    found = load_answers(write(tmp_path / "a.jsonl", GOOD, raw), least=2)
    assert [row.number for row in found.rows] == [1]
    (skipped,) = found.skipped
    assert skipped.number == 2
    assert reason in skipped.reason


def test_a_repeated_row_and_a_repeated_id_are_distinguished(tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl",
        {**GOOD, "id": "x"},
        {**GOOD, "id": "x"},
        {**GOOD, "id": "x", "answers": ["other", "texts"]},
    )
    found = load_answers(path, least=2)
    assert len(found.rows) == 1
    assert [s.reason for s in found.skipped] == [
        "repeats line 1",
        "has the id 'x' of line 1, but other texts; give each row its own id",
    ]


def test_prompts_without_answers_are_set_apart_for_a_policy(tmp_path: Path):
    found = load_answers(write(tmp_path / "a.jsonl", {"prompt": "hi"}, {"prompt": "ho", "answers": []}, GOOD), least=2)
    assert [row.number for row in found.unanswered] == [1, 2]


def test_one_answer_is_enough_where_answers_are_judged_alone(tmp_path: Path):
    assert len(load_answers(write(tmp_path / "a.jsonl", {"prompt": "hi", "answers": ["a"]}), least=1).rows) == 1


@pytest.mark.parametrize("content", ["", "\n\n", "{}\n", '{"prompt": ""}\n'])
def test_a_file_with_nothing_to_label_is_refused_with_its_contents(tmp_path: Path, content: str):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"nothing to label.*expected `prompt` and `answers`"):
        load_answers(path, least=2)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl does not exist"):
        load_answers(tmp_path / "nowhere.jsonl", least=2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["prompt", "answers", "completions", "chosen", "rejected", "id", "tags", "role", "content"]


@settings(max_examples=200, deadline=None)
@given(JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5))
def test_any_row_is_read_or_refused_with_a_reason(raw: Any):
    with contextlib.suppress(ValueError):
        assert all(isinstance(answer, str) for answer in parse_row(1, raw).answers)
