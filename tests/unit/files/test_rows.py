"""Rows of every kind of file, of several files, and of unreadable files."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError
from solon.files.data_config import ReadConfig
from solon.files.prompts import load_prompts
from solon.files.row_sources import is_dataset_name
from solon.files.rows import BrokenRowError, read_rows

ROWS = [{"prompt": "what is blue ?", "tags": ["fact"]}, {"prompt": 'say "ä,\nb"', "tags": []}]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def in_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["prompt", "tags"])
    writer.writerows([row["prompt"], ", ".join(row["tags"])] for row in rows)
    return text.getvalue().encode()


def in_parquet(rows: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def in_arrow(rows: list[Any], new: Callable[..., Any]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def packed(data: bytes, compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as out:
        out.write(data)
    return bytes(sink.getvalue().to_pybytes())


FORMATS: dict[str, Callable[[list[Any]], bytes]] = {
    "p.jsonl": jsonl,
    "p.JSONL": jsonl,
    "p.ndjson": jsonl,
    "lines.json": jsonl,
    "list.json": lambda rows: json.dumps(rows).encode(),
    "list.jsonl": lambda rows: json.dumps(rows, indent=1).encode(),
    "utf16.jsonl": lambda rows: jsonl(rows).decode().encode("utf-16"),
    "utf16.json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False).encode("utf-16"),
    "bom.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    "p.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "members.jsonl.gz": lambda rows: b"".join(gzip.compress(jsonl([row])) for row in rows),
    "p.jsonl.bz2": lambda rows: bz2.compress(jsonl(rows)),
    "p.jsonl.zst": lambda rows: packed(jsonl(rows), "zstd"),
    "list.json.lz4": lambda rows: packed(json.dumps(rows).encode(), "lz4"),
    "p.csv": in_csv,
    "p.tsv": lambda rows: in_csv(rows, "\t"),
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + in_csv(rows),
    "utf16.csv": lambda rows: in_csv(rows).decode().encode("utf-16"),
    "p.csv.gz": lambda rows: gzip.compress(in_csv(rows)),
    "p.parquet": in_parquet,
    "file.arrow": lambda rows: in_arrow(rows, pa.ipc.new_file),
    "stream.arrow": lambda rows: in_arrow(rows, pa.ipc.new_stream),
    "p.feather": lambda rows: in_arrow(rows, pa.ipc.new_file),
}


def read(source: str | Path, **how: Any) -> list[tuple[str, Any]]:
    return [(str(place), row) for place, row in read_rows(source, what="prompt", read=ReadConfig(**how))]


def refusal(source: str | Path, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_prompts(source, read=ReadConfig(**how))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_prompts(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(FORMATS[name](ROWS))
    file = load_prompts(tmp_path / name)
    assert [p.messages[0].content for p in file.prompts] == [row["prompt"] for row in ROWS]
    assert [list(p.tags) for p in file.prompts] == [row["tags"] for row in ROWS]
    assert file.warnings() == []


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("p.jsonl", jsonl(ROWS) + b"{}\n", "line 3"),
        ("p.json", json.dumps([*ROWS, {}]).encode(), "row 3"),
        ("p.csv", in_csv(ROWS) + b",\n", "line 5"),  # the second prompt takes two lines
        ("p.parquet", in_parquet([*ROWS, {"prompt": None}]), "row 3"),
        ("p.arrow", in_arrow([*ROWS, {"prompt": None}], pa.ipc.new_file), "row 3"),
    ],
)
def test_lines_of_texts_and_rows_of_tables_are_called_by_their_names(
    tmp_path: Path, name: str, content: bytes, place: str
):
    (tmp_path / name).write_bytes(content)
    (bad,) = load_prompts(tmp_path / name, max_bad_share=0.5).bad
    assert str(bad.place) == place


def test_a_folder_and_a_glob_are_read_in_order_and_name_the_file_of_a_broken_row(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS[1:]) + b"{\n"))
    (folder / "a.parquet").write_bytes(in_parquet(ROWS[:1]))
    (folder / "README.md").write_text("not read")
    for source in (folder, f"{folder}/*", f"{tmp_path}/**/*.*"):
        rows = read(source)
        assert [place for place, _ in rows] == ["row 1 of a.parquet", "line 1 of b.jsonl.gz", "line 2 of b.jsonl.gz"]
        assert isinstance(rows[-1][1], BrokenRowError)
    assert [place.ordinal for place, _ in read_rows(folder, what="prompt")] == [1, 2, 3]
    assert "no file matches" in refusal(f"{folder}/*.csv")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").touch()
    assert "is not a saved dataset and has no file to read" in refusal(tmp_path / "empty")
    assert "it has the folders ['data', 'empty']" in refusal(tmp_path)


def test_files_of_one_split_are_read_and_two_splits_are_never_mixed_silently(tmp_path: Path):
    for name, text in (("train-00000-of-00002", "a"), ("train-00001-of-00002", "b"), ("test-00000-of-00001", "c")):
        (tmp_path / f"{name}.parquet").write_bytes(in_parquet([{"prompt": text}]))
    assert "files of the splits test, train; name one with data.split" in refusal(tmp_path)
    assert [row["prompt"] for _, row in read(tmp_path, split="train")] == ["a", "b"]
    assert [row["prompt"] for _, row in read(f"{tmp_path}/*.parquet", split="test")] == ["c"]
    assert "no file of the split 'validation'" in refusal(tmp_path, split="validation")


def test_another_column_is_chosen_by_name_and_a_missing_one_is_named(tmp_path: Path):
    rows = [{"question": "why ?", "answer": "so"}]
    for name, content in (("p.jsonl", jsonl(rows)), ("p.parquet", in_parquet(rows))):
        path = tmp_path / name
        path.write_bytes(content)
        assert load_prompts(path, read=ReadConfig(column="question")).prompts[0].messages[0].content == "why ?"
        message = refusal(path)
        assert "no `prompt`, only" in message or "no column `prompt`, only" in message
        assert "['answer', 'question']; set data.column = 'question'" in message


def test_a_saved_dataset_is_read_by_its_split(tmp_path: Path):
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    parts = {name: Dataset.from_list([{"prompt": name}]) for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    DatasetDict({"only": parts["train"]}).save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "both", split="test") == [("row 1", {"prompt": "test"})]
    assert read(tmp_path / "one") == [("row 1", {"prompt": "train"})]
    assert "has no split 'dev', only train, test" in refusal(tmp_path / "both", split="dev")


def test_a_hub_dataset_that_cannot_be_reached_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def unreachable(name: str, subset: str | None, *, split: str | None) -> Any:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (offline)\nTraceback")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refusal("org/prompts")
    assert "prompt dataset org/prompts is not a local path and cannot be loaded from the hub: Couldn't reach" in message
    assert "data.split" in message


def test_a_hub_dataset_is_asked_for_by_subset_and_split(monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked: list[Any] = []

    def load(name: str, subset: str | None, *, split: str | None) -> Any:
        asked.append((name, subset, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row["prompt"] for _, row in read("org/prompts", subset="main", split="train")] == [
        r["prompt"] for r in ROWS
    ]
    assert asked == [("org/prompts", "main", "train")]


def test_without_a_network_only_the_cache_is_searched_and_nothing_is_retried(monkeypatch: pytest.MonkeyPatch):
    import datasets
    import huggingface_hub.constants
    from huggingface_hub import HfApi

    def no_answer(self: HfApi, name: str, *, timeout: float) -> Any:
        raise OSError("Name or service not known")

    def load(name: str, subset: str | None, *, split: str | None) -> Any:
        assert datasets.config.HF_HUB_OFFLINE
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(HfApi, "dataset_info", no_answer)
    monkeypatch.setattr(datasets, "load_dataset", load)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    assert len(read("org/prompts")) == len(ROWS)
    assert not datasets.config.HF_HUB_OFFLINE
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_names_of_files_are_no_names_of_datasets():
    assert is_dataset_name("org/ultra-prompts_v1.1")
    assert not any(map(is_dataset_name, ("data/p.jsonl", "data/p.jsonl.gz", "data/p.txt", "prompts", "./a/b", "a/b/c")))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.json", json.dumps({"data": ROWS}, indent=1).encode(), "is one JSON object with ['data'], expected a list"),
        ("p.jsonl", jsonl(ROWS).decode().encode("utf-16-le"), "zero bytes, as UTF-16 has"),
        ("p.jsonl.gz", gzip.compress(jsonl(ROWS) * 99)[:-20], "cannot be read"),
        ("p.jsonl.gz", b"no gzip", "cannot be read"),
        ("p.jsonl.zst", b"no zstd", "cannot be read"),
        ("p.csv", b'prompt\n"never closed\nb\nc\n', "line 2 opens a quote that is never closed"),
        ("p.csv", b"question\nwhy ?\n", "no column `prompt`, only ['question']; set data.column = 'question'"),
        ("p.csv", b"prompt;tags\nwhy ?;a\n", "only ['prompt;tags']"),
        ("p.csv", b"prompt,tags\na,b,c\n", "line 2: has 3 cells, expected 2"),
        ("p.csv", b"prompt\n\xff\n", "line 2: not UTF-8"),
        ("p.csv", b"", "it is empty"),
        ("p.arrow", b"nonsense", "cannot be read as Arrow"),
        (
            "p.parquet",
            in_parquet([{"prompt": [[["a"]], [["b"]]]}] * 3),
            "3 rows: `prompt` is a list with a list of lists in it, expected messages {role, content} (rows 1, 2, 3)",
        ),
    ],
)
def test_an_unreadable_file_is_refused_in_one_accurate_line(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=6), st.sampled_from([n for n in FORMATS if not n.startswith("members")]))
def test_any_text_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, prompts: list[str], name: str):
    path = tmp_path_factory.mktemp("rows") / name
    path.write_bytes(FORMATS[name]([{"prompt": text, "tags": []} for text in prompts]))
    assert [p.messages[0].content for p in load_prompts(path).prompts] == prompts
