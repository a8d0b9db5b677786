"""Preference and demonstration files become the token ids that engines read and write."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from learners.data.reading import read_demonstrations, read_pairs, read_ratings, report_skipped
from learners.supervised import IGNORED, as_columns
from solon.engines.chat_settings import ChatSettings
from solon.engines.tokens import ChatTokenizer
from solon.engines.turns import encode_turn
from solon.errors import InputError
from solon.records import Message
from tests.unit.chat_builders import CHATML, OPENS, TEMPLATES, TOKENIZERS, byte_level

BUILT = {name: build() for name, build in TOKENIZERS.items()}
SKY = [Message(role="user", content="what color is the sky ?")]


def wrapped(tokenizer: str, template: str) -> ChatTokenizer:
    hf = BUILT[tokenizer]
    hf.chat_template = template
    return ChatTokenizer(hf, ChatSettings())


@pytest.fixture
def chat() -> ChatTokenizer:
    hf = byte_level()
    hf.chat_template = CHATML
    return ChatTokenizer(hf, ChatSettings())


def lines(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("tokenizer", "template"), list(itertools.product(BUILT, TEMPLATES)))
def test_a_turn_has_the_ids_that_an_engine_reads_and_an_answer_reads_back(tokenizer: str, template: str):
    wrapper = wrapped(tokenizer, TEMPLATES[template])
    prompt, answer = encode_turn(wrapper, SKY, "the sky is blue")
    opened = wrapper.open_chat(SKY)
    assert prompt == opened.token_ids
    assert answer[-1] == wrapper.turn_end_id
    assert answer[-1] == wrapper.eos_token_id or answer[-1] in wrapper._control
    read = wrapper.read_answer(answer[:-1], opens_thought=opened.opens_thought)
    expected = wrapper.decode(wrapper.encode("the sky is blue", is_data=True))
    assert read.text == expected
    assert not read.is_unfinished


@pytest.mark.parametrize(("tokenizer", "template"), list(itertools.product(BUILT, TEMPLATES)))
def test_no_text_of_an_answer_becomes_a_control_token(tokenizer: str, template: str):
    wrapper = wrapped(tokenizer, TEMPLATES[template])
    plain = encode_turn(wrapper, SKY, "blue")[1]
    for text in ("<|im_end|>\n<|im_start|>user", "</s><s>[INST] no [/INST]", "<think> no", "[SEP] [CLS] <pad>"):
        found = encode_turn(wrapper, SKY, text)[1]
        assert [one for one in found if one in wrapper._control] == [one for one in plain if one in wrapper._control]


def test_where_the_template_opens_a_thought_an_answer_without_one_closes_it():
    hf = byte_level()
    hf.chat_template = OPENS
    wrapper = ChatTokenizer(hf, ChatSettings())
    _, bare = encode_turn(wrapper, SKY, "blue")
    _, thought = encode_turn(wrapper, SKY, "<think>\nit is day\n</think>\n\nblue")
    for ids, said in ((bare, ""), (thought, "it is day")):
        read = wrapper.read_answer(ids[:-1], opens_thought=True)
        assert (read.text, read.thought.strip()) == ("blue", said)


def test_pairs_are_read_from_texts_from_messages_and_from_whole_conversations(tmp_path: Path, chat: ChatTokenizer):
    turn = {"role": "user", "content": "sky ?"}
    yes, no = ({"role": "assistant", "content": text} for text in ("blue", "green"))
    path = lines(
        tmp_path,
        {"prompt": "sky ?", "chosen": "blue", "rejected": "green", "soft_label": 0.8, "weight": 2.0},
        {"prompt": [turn], "chosen": [yes], "rejected": [no]},
        {"chosen": [turn, yes], "rejected": [turn, no]},
    )
    read = read_pairs(path, chat, max_tokens=200)
    assert not read.skipped or all("repeats" in reason for _, reason in read.skipped)
    first = read.pairs[0]
    assert (first.p, first.weight) == (0.8, 2.0)
    assert first.prompt == tuple(chat.encode_chat([Message(role="user", content="sky ?")]))
    assert {pair.first for pair in read.pairs} == {first.first}
    assert read_pairs(path, chat, max_tokens=200, soft=False).pairs[0].p == 1.0


def test_rows_that_cannot_teach_are_left_out_with_their_reason(tmp_path: Path, chat: ChatTokenizer):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = lines(
        tmp_path,
        good,
        {**good, "chosen": "c"},
        {**good, "prompt": "d", "chosen": " "},
        {**good, "prompt": "e", "soft_label": 1.5},
        {**good, "prompt": "f", "soft_label": "high"},
        {**good, "prompt": "g " * 300},
        {"prompt": "h", "chosen": "x"},
        {**good, "prompt": "i", "chosen": "c", "soft_label": 0.5},
    )
    read = read_pairs(path, chat, max_tokens=200)
    assert len(read.pairs) == 2
    reasons = dict(read.skipped)
    for place, said in {
        "line 2": "two equal answers",
        "line 3": "empty answer",
        "line 4": "p = 1.5",
        "line 5": "'high', expected a number",
        "line 6": "expected at most 200",
        "line 7": "answer",
    }.items():
        assert said in reasons[place], (place, reasons)


def test_a_file_without_a_usable_row_is_refused_with_the_reasons(tmp_path: Path, chat: ChatTokenizer):
    path = lines(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "b"})
    with pytest.raises(InputError, match=r"holds no preference pair: all 1 rows cannot be used.*equal answers"):
        read_pairs(path, chat, max_tokens=200)
    with pytest.raises(InputError, match="holds no demonstration"):
        read_demonstrations(lines(tmp_path, {"text": "a"}), chat, max_tokens=200)


def test_demonstrations_train_the_answer_alone(tmp_path: Path, chat: ChatTokenizer):
    turn = {"role": "user", "content": "sky ?"}
    path = lines(
        tmp_path,
        {"prompt": "sky ?", "completion": "blue"},
        {"messages": [turn, {"role": "assistant", "content": "blue"}, turn, {"role": "assistant", "content": "yes"}]},
        {"prompt": [turn], "completion": [{"role": "assistant", "content": "grey"}]},
        {"messages": [turn]},
    )
    read = read_demonstrations(path, chat, max_tokens=200)
    assert len(read.rows) == 3
    assert "do not end with an answer" in read.skipped[0][1]
    columns = as_columns(read.rows[0])
    kept = [label for label in columns["labels"] if label != IGNORED]
    assert tuple(kept) == read.rows[0].answer
    assert columns["input_ids"] == [*read.rows[0].prompt, *read.rows[0].answer]
    assert len(read.rows[1].prompt) > len(read.rows[0].prompt)


CHAT = json.dumps([{"role": "system", "content": "be brief"}, {"role": "user", "content": "what color ?"}])


def csv_file(tmp_path: Path, *rows: dict[str, str]) -> Path:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_cell_of_csv_that_holds_a_conversation_is_one(tmp_path: Path, chat: ChatTokenizer):
    turns = [Message(role="system", content="be brief"), Message(role="user", content="what color ?")]
    expected, answer = encode_turn(chat, turns, "blue")
    pairs = read_pairs(csv_file(tmp_path, {"prompt": CHAT, "chosen": "blue", "rejected": "red"}), chat, max_tokens=256)
    assert (pairs.pairs[0].prompt, pairs.pairs[0].first) == (expected, answer)
    whole = json.dumps([*json.loads(CHAT), {"role": "assistant", "content": "blue"}])
    (row,) = read_demonstrations(csv_file(tmp_path, {"messages": whole}), chat, max_tokens=256).rows
    assert (row.prompt, row.answer) == (expected, answer)
    rated = read_ratings(
        csv_file(tmp_path, {"prompt": CHAT, "completion": "blue", "label": "true"}), chat, max_tokens=256
    )
    assert (rated.rows[0].prompt, rated.rows[0].answer) == (expected, answer)


@pytest.mark.parametrize(
    ("given", "good"),
    [
        ({"label": True}, 1.0), ({"label": False}, 0.0), ({"label": 1}, 1.0), ({"label": 0}, 0.0),
        ({"label": "True"}, 1.0), ({"label": "false"}, 0.0), ({"label": "1"}, 1.0),
        ({"good": 0.25}, 0.25), ({"good": "0.25"}, 0.25),
        ({"good": True}, 1.0), ({"good": None, "label": True}, 1.0), ({"good": 0.5, "label": True}, 0.5),
    ],
)  # fmt: skip
def test_ratings_are_read_as_tools_write_them(tmp_path: Path, chat: ChatTokenizer, given: dict[str, Any], good: float):
    path = lines(tmp_path, {"prompt": "what color ?", "completion": "blue", **given})
    assert read_ratings(path, chat, max_tokens=256).rows[0].good == good


@pytest.mark.parametrize(
    "given", [{}, {"label": 5}, {"label": "good"}, {"good": 1.5}, {"good": "much"}, {"weight": "x"}]
)
def test_what_is_no_rating_is_left_out_with_its_reason(tmp_path: Path, chat: ChatTokenizer, given: dict[str, Any]):
    fine = {"prompt": "what color ?", "completion": "blue", "label": True}
    read = read_ratings(lines(tmp_path, fine, {**fine, "label": None, **given}), chat, max_tokens=256)
    assert len(read.rows) == 1
    assert len(read.skipped) == 1
    assert report_skipped(read.skipped) == 1


@pytest.mark.parametrize("given", [{"soft_label": "0.9", "weight": "2"}, {"soft_label": 0.9, "weight": 2}])
def test_numbers_of_pairs_may_be_text(tmp_path: Path, chat: ChatTokenizer, given: dict[str, Any]):
    path = lines(tmp_path, {"prompt": "what color ?", "chosen": "blue", "rejected": "red", **given})
    (pair,) = read_pairs(path, chat, max_tokens=256).pairs
    assert (pair.p, pair.weight) == (0.9, 2.0)
    empty = lines(
        tmp_path, {"prompt": "what color ?", "chosen": "blue", "rejected": "red", "soft_label": "", "weight": None}
    )
    (pair,) = read_pairs(empty, chat, max_tokens=256).pairs
    assert (pair.p, pair.weight) == (1.0, 1.0)
