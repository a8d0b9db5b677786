from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.cli.main import main
from solon.constitution.constitution import Constitution
from solon.constitution.imports import Imported, import_constitution
from solon.errors import InputError

HF_ROWS = [
    {"critic": "Say what is harmful.", "revision": "Remove what is harmful."},
    {"critic": "Say what is rude.", "revision": "Make it {polite}."},
]
HF = json.dumps({"constitutions": HF_ROWS, "system_chat": [["hi", "hello"]]})
LANGCHAIN = """\
- name: Ethical Principle
  critique_request: The answer should be ethical.
  revision_request: Make the answer ethical.
- {name: Über-Brief!, critique_request: Say what is long., revision_request: Make it brief.}
- {name: ethical principle, critique_request: Say what is unlawful., revision_request: Make it lawful.}
"""


def read(tmp_path: Path, text: str, name: str = "their rules.json", **options: Any) -> Imported:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return import_constitution(path, **options)


def refusal(tmp_path: Path, text: str, name: str = "theirs.json", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text, name, **options)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_critiques_and_revisions_become_numbered_principles(tmp_path: Path):
    imported = read(tmp_path, HF)
    first, second = imported.constitution.principles
    assert imported.form == "hf"
    assert (first.id, second.id) == ("principle-1", "principle-2")
    assert (first.critique_request, first.revision_request) == ("Say what is harmful.", "Remove what is harmful.")
    assert imported.constitution.id == "their-rules"
    assert "left out: `system_chat`" in imported.warnings


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (json.dumps(HF_ROWS), "a.json"),
        ("\n".join(map(json.dumps, HF_ROWS)) + "\n\n", "a.jsonl"),
        (json.dumps([{"critique": r["critic"], "revision": r["revision"]} for r in HF_ROWS]), "a.json"),
        (json.dumps(HF_ROWS), "a.yaml"),
        (yaml.safe_dump(HF_ROWS), "a.yml"),
    ],
)
def test_every_spelling_of_the_form_gives_the_same_principles(tmp_path: Path, text: str, name: str):
    assert read(tmp_path, text, name).constitution.principles == read(tmp_path, HF).constitution.principles


def test_named_principles_keep_their_names_as_unique_ids(tmp_path: Path):
    imported = read(tmp_path, LANGCHAIN, "theirs.yaml")
    assert imported.form == "langchain"
    assert [p.id for p in imported.constitution.principles] == [
        "ethical-principle",
        "uber-brief",
        "ethical-principle-2",
    ]


def test_principles_may_stand_under_their_names(tmp_path: Path):
    rows = {row["name"]: {k: v for k, v in row.items() if k != "name"} for row in yaml.safe_load(LANGCHAIN)}
    for text in (json.dumps(rows), json.dumps({"principles": yaml.safe_load(LANGCHAIN)})):
        assert (
            read(tmp_path, text).constitution.principles == read(tmp_path, LANGCHAIN, "l.yaml").constitution.principles
        )


def test_an_invented_id_does_not_collide_with_a_given_one(tmp_path: Path):
    rows = [
        {"name": n, "critique_request": n + str(i), "revision_request": "r"}
        for i, n in enumerate(["A", "A-2", "a", "?"])
    ]
    assert [p.id for p in read(tmp_path, json.dumps(rows)).constitution.principles] == ["a", "a-2", "a-3", "principle"]


def test_questions_are_derived_from_the_revision_request_and_marked_so(tmp_path: Path):
    imported = read(tmp_path, HF)
    principle = imported.constitution.principles[1]
    assert principle.pairwise_question == (
        "Which answer would have to change less if its author were told: “Make it {polite}.”"
    )
    assert principle.pointwise_question == (
        "Could the answer stay as it is if its author were told: “Make it {polite}.”"
    )
    assert "derived from the revision requests" in imported.constitution.description
    assert any("derived from the revision requests" in warning for warning in imported.warnings)


def test_a_duplicate_principle_is_kept_once(tmp_path: Path):
    imported = read(tmp_path, json.dumps([*HF_ROWS, HF_ROWS[0]]))
    assert [p.revision_request for p in imported.constitution.principles] == [r["revision"] for r in HF_ROWS]
    assert any("1 principle(s) were duplicates" in warning for warning in imported.warnings)


def test_a_written_constitution_reads_back_equal(tmp_path: Path):
    imported = read(tmp_path, HF, constitution_id="theirs", kind="helpful")
    path = tmp_path / "out.yaml"
    path.write_text(imported.as_yaml())
    loaded = Constitution.load(path)
    assert loaded == imported.constitution
    assert loaded.hash == imported.constitution.hash
    assert (loaded.id, loaded.principles[0].kind) == ("theirs", "helpful")
    assert loaded.for_task("pairwise")
    assert loaded.for_task("pointwise")
    assert "predicates" not in path.read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not JSON", "name the file .yaml"]),
        ("[" * 100_000, ["not JSON"]),
        ("7", ["holds a int", "list of principles"]),
        ("[]", ["holds nothing"]),
        ("null", ["holds nothing"]),
        ('{"constitutions": []}', ["holds nothing"]),
        ('["be good"]', ["principle 1 is 'be good'", "{critic, revision}"]),
        ('[{"critic": "x"}]', ["keys ['critic']", "{critic, revision} (hf)", "(langchain)"]),
        ('[{"critic": "x", "revision": " "}]', ["principle 1", "' '", "`revision`"]),
        ('[{"critic": "x", "revision": 7}]', ["principle 1", "7", "`revision`", "expected a text"]),
        ('[{"critic": "x", "revision": "\\ud800"}]', ["principle 1", "`revision`"]),
        ('[{"critic": "x", "revision": "y"}, {"name": "z", "critique_request": "x"}]', ["keys"]),
        ('[{"name": [1], "critique_request": "x", "revision_request": "y"}]', ["[1]", "`name`"]),
        ('{"schema": "solon.constitution/v1", "principles": []}', ["Solon's own form already"]),
        ("9" * 5000, ["constitution"]),
    ],
)
def test_a_file_of_neither_form_is_refused_in_one_line(tmp_path: Path, text: str, words: list[str]):
    message = refusal(tmp_path, text)
    assert [word for word in words if word not in message] == []
    assert len(message) < 600 + len(str(tmp_path))


def test_a_broken_line_is_named(tmp_path: Path):
    text = json.dumps(HF_ROWS[0]) + "\n\n{broken\n"
    assert "theirs.jsonl, line 3 is not JSON" in refusal(tmp_path, text, "theirs.jsonl")


def test_a_form_that_was_asked_for_must_be_there(tmp_path: Path):
    message = refusal(tmp_path, HF, form="langchain")
    assert "principle 1 has nothing as `critique_request`, expected a text (langchain form)" in message


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.json does not exist"):
        import_constitution(tmp_path / "gone.json")


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "critic", "critique", "revision", "critique_request", "revision_request", "x"]),
            inner,
            max_size=4,
        )
        | st.dictionaries(st.sampled_from(["constitutions", "principles", "schema"]), inner, max_size=2)
    ),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@settings(max_examples=60, deadline=None)
@given(json_values, st.sampled_from(["auto", "hf", "langchain"]))
def test_any_json_is_imported_or_refused(folder: Path, value: Any, form: Any):
    with contextlib.suppress(InputError):
        imported = read(folder, json.dumps(value), form=form)
        assert Constitution.parse(imported.as_yaml()) == imported.constitution


texts = st.text(min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), texts, texts), min_size=1, max_size=6))
def test_with_any_texts_the_ids_are_unique_and_the_file_loads(folder: Path, rows: list[tuple[str, str, str]]):
    document = [{"name": n, "critique_request": c, "revision_request": r} for n, c, r in rows]
    imported = read(folder, json.dumps(document))
    ids = [p.id for p in imported.constitution.principles]
    assert len(set(ids)) == len(ids)
    assert Constitution.parse(imported.as_yaml()) == imported.constitution


# -- on the command line ----------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["solon", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


def test_import_writes_a_file_and_never_overwrites_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source, out = tmp_path / "theirs.json", tmp_path / "ours.yaml"
    source.write_text(HF)
    command: list[str | Path] = ["constitution", "import", source, "--id", "ours", "--out", out]
    assert call(monkeypatch, *command) == 0
    shown = capsys.readouterr().out
    assert "warning: the pairwise and pointwise questions are derived" in shown
    assert "2 principle(s)" in shown
    assert Constitution.load(out).id == "ours"

    out.write_text("mine")
    assert call(monkeypatch, *command) == 2
    assert "exists; choose another --out, or replace it with --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert call(monkeypatch, *command, "--force", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["principles"] == ["principle-1", "principle-2"]
    assert result["constitution_hash"] == Constitution.load(out).hash


def test_a_source_that_cannot_be_used_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source, out = tmp_path / "theirs.json", tmp_path / "ours.yaml"
    source.write_text("[1]")
    assert call(monkeypatch, "constitution", "import", source, "--out", out) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
