"""Results are kept under digests, whole or not at all, and a changed file is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.artifacts.code import code_digest
from solon.artifacts.digests import content_digest, digest_of, files_of
from solon.artifacts.store import Store, first_difference
from solon.errors import InputError

KEY = {"stage": "dpo", "settings": {"beta": 0.1}, "inputs": {"policy": "a"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def make(store: Store, text: str, key: dict[str, object] | None = None) -> None:
    with store.making(key or KEY) as making:
        (making.folder / "model").mkdir()
        (making.folder / "model" / "weights").write_text(text)
        making.record["loss"] = 0.5


def test_a_result_is_found_under_its_key_and_under_no_other(tmp_path: Path):
    store = Store(tmp_path)
    assert store.find(KEY) is None
    make(store, "w")
    found = store.find(KEY)
    assert found is not None
    assert (found.folder / "model" / "weights").read_text() == "w"
    assert found.record == {"loss": 0.5}
    assert store.find({**KEY, "settings": {"beta": 0.2}}) is None
    assert store.keys("dpo") == [KEY]


def test_equal_files_have_equal_digests_wherever_and_whenever_they_are_made(tmp_path: Path):
    one, two = Store(tmp_path / "a"), Store(tmp_path / "b")
    make(one, "w")
    make(two, "w", {**KEY, "settings": {"beta": 9}})
    found = [one.find(KEY), two.find({**KEY, "settings": {"beta": 9}})]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].digest == found[1].digest == content_digest(found[0].folder)


def test_a_failure_leaves_no_result_and_a_second_try_works(tmp_path: Path):
    store = Store(tmp_path)

    def fail() -> None:
        with store.making(KEY) as making:
            (making.folder / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.find(KEY) is None
    make(store, "w")
    assert store.find(KEY) is not None


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_files_that_were_changed_by_hand_are_refused_by_name(tmp_path: Path, change: str):
    store = Store(tmp_path)
    make(store, "w")
    found = store.find(KEY)
    assert found is not None
    weights = found.folder / "model" / "weights"
    if change == "edit":
        weights.write_text("v")
    elif change == "add":
        (found.folder / "model" / "more").write_text("x")
    else:
        weights.unlink()
    with pytest.raises(InputError, match=r"has other files than when it was made \(model/.*remove the folder"):
        store.find(KEY)


def test_an_earlier_result_stays_until_a_new_one_is_whole(tmp_path: Path):
    store = Store(tmp_path)
    make(store, "w")

    def fail() -> None:
        with store.making(KEY):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    found = store.find(KEY)
    assert found is not None
    assert (found.folder / "model" / "weights").read_text() == "w"
    make(store, "v")
    found = store.find(KEY)
    assert found is not None
    assert (found.folder / "model" / "weights").read_text() == "v"


def test_a_removed_folder_and_a_torn_manifest_are_made_again(tmp_path: Path):
    store = Store(tmp_path)
    make(store, "w")
    (manifest,) = tmp_path.glob("dpo-*.json")
    manifest.write_text(manifest.read_text()[:40])
    assert store.find(KEY) is None
    make(store, "w")
    assert store.find(KEY) is not None


def test_links_are_refused(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="is a link"):
        files_of(tmp_path)


@given(JSON, JSON)
def test_digests_of_values_are_equal_only_for_equal_values(one: object, two: object):
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (digest_of(one) == digest_of(two)) == same


@given(st.dictionaries(st.text(min_size=1), JSON, max_size=4))
def test_the_first_difference_is_empty_only_for_equal_keys(value: dict[str, object]):
    assert first_difference(value, value) == ""
    changed = {**value, "zzz": 1, "zzy": {"deep": 2}}
    assert first_difference(value, changed).startswith("zz") or first_difference(value, changed)


def test_the_code_of_a_module_includes_what_it_imports_in_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from solon.artifacts import code

    for name, text in {
        "solon/__init__.py": "",
        "solon/a.py": "def f():\n    from solon import b\n    return b\n",
        "solon/b.py": "import solon.c\n",
        "solon/c.py": "X = 1\n",
        "solon/d.py": "Y = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code, "ROOT", tmp_path)

    def digest() -> str:
        for cached in (code._imports, code._source_digest, code._path_of):
            cached.cache_clear()
        return code_digest("solon.a")

    before = digest()
    (tmp_path / "solon/d.py").write_text("Y = 2\n")
    assert digest() == before
    (tmp_path / "solon/c.py").write_text("X = 2\n")
    assert digest() != before
    digest()
    for cached in (code._imports, code._source_digest, code._path_of):
        cached.cache_clear()
