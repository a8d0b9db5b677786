from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError
from solon.files.data_config import ReadConfig
from solon.files.prompts import PromptSource, load_prompts, parse_prompt, prompt_id
from solon.records import Message
from tests.unit.fakes import make_prompt


def write(tmp_path: Path, lines: Sequence[Any], name: str = "prompts.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
    )
    return path


def many(count: int = 200) -> list[dict[str, Any]]:
    return [{"prompt": f"question {n} ?"} for n in range(count)]


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_prompts(path)
    message = str(caught.value)
    assert str(path) in message
    return message.replace(str(path), "")


def test_text_and_messages_are_both_prompts(tmp_path: Path):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    file = load_prompts(write(tmp_path, [{"prompt": "hi"}, {"prompt": chat, "tags": ["fact"]}]))
    assert [m.role for p in file.prompts for m in p.messages] == ["user", "system", "user"]
    assert file.prompts[1].tags == ("fact",)
    assert file.warnings() == []


def test_the_id_depends_on_the_conversation_alone():
    one = parse_prompt({"prompt": "hi", "tags": ["a"], "other": 1})
    assert one.prompt_id == parse_prompt({"prompt": [{"role": "user", "content": "hi"}]}).prompt_id
    assert one.prompt_id != parse_prompt({"prompt": "hi "}).prompt_id
    assert prompt_id([Message(role="user", content="hi")]) == "675b797826f34c78"


def test_blank_lines_and_a_byte_order_mark_are_no_broken_rows(tmp_path: Path):
    path = write(tmp_path, [b'\xef\xbb\xbf{"prompt": "hi"}', b"", b"  \r", {"prompt": "ho"}, b""])
    file = load_prompts(path)
    assert (file.prompts, file.bad) == ((make_prompt("hi"), make_prompt("ho")), ())
    assert [str(place) for place in file.places] == ["line 1", "line 4"]


def test_one_broken_row_in_many_is_skipped_and_named_with_its_line(tmp_path: Path):
    file = load_prompts(write(tmp_path, [*many(), {"promt": "x"}]))
    assert len(file.prompts) == 200
    (warning,) = file.warnings()
    assert "skipped 1 of 201 rows" in warning
    assert "line 201" in warning
    assert "only ['promt'] (did you mean `prompt`?)" in warning


def test_more_than_one_percent_of_broken_rows_is_refused(tmp_path: Path):
    path = write(tmp_path, [*many(), *[b"{"] * 3])
    message = refusal(path)
    assert "3 of 203 rows are broken" in message
    assert "lines 201, 202, 203" in message
    assert "data.max_bad_share = 0.01" in message
    assert len(load_prompts(path, max_bad_share=0.02).bad) == 3
    assert load_prompts(write(tmp_path, [*many(), *[b"{"] * 2])).bad[0].place.number == 201


def test_a_file_with_nothing_in_it_is_refused(tmp_path: Path):
    assert "it is empty" in refusal(write(tmp_path, []))
    assert "all 1 rows are broken" in refusal(write(tmp_path, [{"prompt": ""}]))


CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]


def test_a_text_that_is_a_json_list_of_messages_is_read_as_messages(tmp_path: Path):
    texts = [
        "[1, 2]",
        '[{"role": "user"}]',
        '{"role": "user", "content": "hi"}',
        '[{"role": "user", "content": "hi"}',
        "[]",
    ]
    path = write(tmp_path, [{"prompt": json.dumps(CHAT)}, *({"prompt": text} for text in texts)])
    file = load_prompts(path)
    assert [m.role for m in file.prompts[0].messages] == ["system", "user"]
    assert file.prompts[0] == parse_prompt({"prompt": CHAT})
    assert [p.messages[0].content for p in file.prompts[1:]] == texts
    assert file.notes() == [
        f"{path}: 1 row held messages as JSON, read as messages; data.json_messages = false takes them as text"
    ]
    plain = load_prompts(path, read=ReadConfig(json_messages=False))
    assert plain.prompts[0].messages[0].content == json.dumps(CHAT)
    assert plain.notes() == []


def test_a_chat_in_a_csv_cell_is_a_chat_and_a_broken_one_a_broken_row(tmp_path: Path):
    turns = [CHAT, [{"role": "tool", "content": "4"}]]
    cells = "\n".join('"{}"'.format(json.dumps(one).replace('"', '""')) for one in turns)
    path = tmp_path / "p.csv"
    path.write_text(f"prompt\n{cells}\n")
    file = load_prompts(path, max_bad_share=0.5)
    assert [len(p.messages) for p in file.prompts] == [2]
    assert "the role 'tool'" in file.bad[0].reason


def test_a_reason_shared_by_many_rows_is_reported_once(tmp_path: Path):
    rows = [{"prompt": ""}] * 5 + [{"prompt": 3}]
    message = refusal(write(tmp_path, rows))
    assert "5 rows: `prompt` is empty (lines 1, 2, 3, …); line 6: " in message
    assert message.count("is empty") == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"\xff\xfd", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 50_000, "not JSON"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"null", "holds a NoneType"),
        (b'{"prompt": NaN}', "is a float"),
        ({"text": "hi"}, "has no `prompt`, only ['text']"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "`conversations` has turns {from, value}, as ShareGPT"),
        ({"prompt": [{"from": "human", "value": "hi"}]}, "`prompt` has turns {from, value}, as ShareGPT writes them"),
        ({"dialog": CHAT}, "set data.column = 'dialog'"),
        ({"chosen": CHAT, "rejected": CHAT}, "`solon label` reads `chosen` and `rejected`"),
        ({"prompt": None}, "is empty"),
        ({"prompt": " \n "}, "is empty"),
        ({"prompt": []}, "is empty"),
        ({"prompt": {"role": "user"}}, "is a dict"),
        ({"prompt": ["hi"]}, "is a list with a str in it, expected messages {role, content}"),
        ({"prompt": [["hi"], ["ho"]]}, "is a list with a list of strs in it"),
        ({"prompt": [{"role": "user", "content": None}]}, "whose content is empty, expected {role, content} with text"),
        ({"prompt": [{"role": "tool", "content": "4"}]}, "the role 'tool', expected one of system, user, assistant"),
        (
            {"prompt": [{"role": "assistant", "content": None, "tool_calls": [{}]}, {"role": "user", "content": "?"}]},
            "has a turn with `tool_calls`",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "content of the type 'image_url', expected text",
        ),
        ({"prompt": [{"role": "judge", "content": "hi"}]}, "the role 'judge', expected one of system, user"),
        ({"prompt": [{"role": ["user"], "content": "hi"}]}, "the role ['user']"),
        ({"prompt": [{"role": "x" * 10_000, "content": "hi"}]}, "the role 'xxx"),
        (
            {"prompt": [{"role": "assistant", "content": "hi"}]},
            "ends with a turn of assistant, expected to end with a user turn",
        ),
        ({"prompt": "half \ud83d"}, "half a character"),
        ({"prompt": "hi", "tags": "fact"}, "`tags` is a str"),
        ({"prompt": "hi", "tags": 5}, "`tags` is a int"),
        ({"prompt": "hi", "tags": {"fact": 1}}, "`tags` is a dict"),
        ({"prompt": "hi", "tags": [1]}, "`tags` is a list"),
        ({"prompt": "hi", "tags": ["\udfff"]}, "`tags`"),
    ],
)
def test_a_broken_row_names_its_problem(tmp_path: Path, row: Any, words: str):
    message = refusal(write(tmp_path, [row]))
    assert words in message
    assert len(message) < 500


def test_a_pair_of_surrogates_is_one_character(tmp_path: Path):
    file = load_prompts(write(tmp_path, [b'{"prompt": "\\ud83d\\ude00"}']))
    assert file.prompts[0].messages[0].content == "\N{GRINNING FACE}"


@pytest.mark.parametrize("name", ["prompts.txt", "prompts", "prompts.xlsx", "prompts.parquet.gz"])
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str):
    assert "expected .jsonl, .json, .csv" in refusal(write(tmp_path, many(1), name))


def test_content_in_parts_of_text_is_text():
    parts = [{"type": "text", "text": "what is "}, {"type": "text", "text": "blue ?"}]
    assert parse_prompt({"prompt": [{"role": "user", "content": parts}]}).messages[0].content == "what is blue ?"


def test_unused_keys_of_a_turn_are_reported(tmp_path: Path):
    turn = {"role": "user", "content": "hi", "name": "ann", "weight": None}
    (warning,) = load_prompts(write(tmp_path, [{"prompt": [turn]}, {"prompt": "ho"}])).warnings()
    assert "turns have keys that are not used: `name` (1 prompts)" in warning


@pytest.mark.parametrize("place", ["missing.jsonl", "a\0b.jsonl", "x" * 5000])
def test_an_unreadable_path_is_an_input_error(tmp_path: Path, place: str):
    with pytest.raises(InputError, match="prompt file"):
        load_prompts(tmp_path / place)


def test_parquet_gives_the_same_prompts_as_json_lines(tmp_path: Path):
    rows = [
        {"prompt": [{"role": "user", "content": "hi"}], "tags": ["fact"]},
        {"prompt": [{"role": "user", "content": "ho"}], "tags": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert load_prompts(tmp_path / "p.parquet").prompts == load_prompts(write(tmp_path, rows)).prompts


def test_broken_parquet_rows_are_counted_and_broken_parquet_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"prompt": pa.array([None, b"bytes"], pa.binary())}), tmp_path / "p.parquet")
    assert "all 2 rows are broken" in refusal(tmp_path / "p.parquet")
    not_text = pa.array([b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": not_text}), tmp_path / "p.parquet")
    assert "Parquet" in refusal(tmp_path / "p.parquet")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 nonsense PAR1")
    assert "Parquet" in refusal(tmp_path / "p.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("examples")


ENDINGS = ("jsonl", "json", "parquet", "csv", "tsv", "arrow", "jsonl.gz", "csv.zst")
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
turns = st.fixed_dictionaries({}, optional={"role": json_values | st.just("user"), "content": json_values})


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries({}, optional={"prompt": json_values | st.lists(turns, max_size=3), "tags": json_values}))
def test_a_row_is_a_usable_prompt_or_a_value_error(row: dict[str, Any]):
    prompt = None
    with contextlib.suppress(ValueError):
        prompt = parse_prompt(row)
    if prompt is not None:
        assert prompt.messages[-1].role == "user"
        assert prompt.messages[-1].content.strip().encode()
        assert [tag for tag in prompt.tags if tag.encode().decode() != tag] == []


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([f"p.{ending}" for ending in ENDINGS]),
)
def test_arbitrary_bytes_never_crash_with_anything_but_an_input_error(folder: Path, data: bytes, name: str):
    path = folder / name
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        assert load_prompts(path).prompts


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damaged_parquet_never_crashes(folder: Path, place: int, damage: bytes):
    path = folder / "p.parquet"
    pq.write_table(pa.table({"prompt": ["what is blue ?", "what is green ?"]}), path)
    data = path.read_bytes()
    path.write_bytes(data[:place] + damage + data[place + len(damage) :])
    with contextlib.suppress(InputError):
        assert load_prompts(path).prompts


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_every_epoch_is_a_permutation_that_any_process_reproduces(size: int, seed: int, epoch: int):
    prompts = [make_prompt(f"question {n}") for n in range(size)]
    source, again = PromptSource(prompts, seed=seed), PromptSource(prompts, seed=seed)
    ordinals = range(epoch * size, (epoch + 1) * size)
    assert {source[n].prompt_id for n in ordinals} == {p.prompt_id for p in prompts}
    assert [source[n] for n in reversed(ordinals)] == [again[n] for n in ordinals][::-1]


def test_epochs_and_seeds_differ_in_order():
    prompts = [make_prompt(f"question {n}") for n in range(50)]
    source = PromptSource(prompts, seed=1)
    first, second = [source[n] for n in range(50)], [source[n + 50] for n in range(50)]
    assert first != second
    assert first != [PromptSource(prompts, seed=2)[n] for n in range(50)]


class FakeDataset(list[Any]):
    """Rows, as `datasets.Dataset` gives them; the library itself takes a second to import."""

    data = SimpleNamespace(table=SimpleNamespace(validate=lambda full: None))


@pytest.mark.parametrize(
    ("loads", "words"),
    [
        (FileNotFoundError("no state.json"), "is not a saved dataset: no state.json"),
        (KeyError("_data_files"), "is not a saved dataset"),
        ({"train": FakeDataset(), "test": FakeDataset()}, "holds the splits train, test; name one with data.split"),
        (FakeDataset([{"text": "hi"}]), "all 1 rows are broken"),
        (FakeDataset(many(2)), ""),
    ],
)
def test_a_folder_is_a_saved_dataset_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: Any, words: str
):
    def load_from_disk(path: str) -> Any:
        if isinstance(loads, Exception):
            raise loads
        return loads

    (tmp_path / "state.json").touch()
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=FakeDataset, load_from_disk=load_from_disk))
    if words:
        assert words in refusal(tmp_path)
    else:
        assert len(load_prompts(tmp_path).prompts) == 2
