"""`solon models import` says what it imported, and refuses in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from solon.cli.main import main
from tests.gguf_files import tiny_network, write_gguf


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["solon", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_an_import_prints_what_a_user_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    assert run(monkeypatch, "models", "import", source, tmp_path / "model", "--dtype", "bfloat16") == 0
    said = capsys.readouterr().out
    for words in (
        "LlamaForCausalLM, 2 layers, 0.1 M parameters, tied embeddings",
        "F32 in the file, bfloat16 in the directory",
        "300 tokens, a context of 128",
        "<|im_end|> ends an answer (the ids 0 do as well), <|pad|> pads, no token begins a text",
        "licence         apache-2.0",
    ):
        assert words in said
    assert run(monkeypatch, "models", "import", source, tmp_path / "other", "--json") == 0
    assert json.loads(capsys.readouterr().out)["eos"] == "<|im_end|>"


def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "cut.gguf").write_bytes(source.read_bytes()[:5000])
    (tmp_path / "taken").mkdir()
    for file, out, words in (
        ("text.gguf", "model", "is no GGUF file"),
        ("cut.gguf", "model", "is truncated or damaged"),
        ("tiny.gguf", "taken", "exists, expected a new directory"),
        ("missing.gguf", "model", "does not exist"),
    ):
        assert run(monkeypatch, "models", "import", tmp_path / file, tmp_path / out) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert words in captured.err
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_run_file_with_a_gguf_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run.toml").write_text(
        'policy = "missing.gguf"\njudge = "missing.gguf"\nprompts = "p.jsonl"\nconstitution = "c.yaml"\n'
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run(monkeypatch, "check", tmp_path / "run.toml") == 2
    assert f"{tmp_path}/missing.gguf does not exist, expected a GGUF file" in capsys.readouterr().err


def test_a_base_model_from_a_gguf_file_is_refused_as_a_policy_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_gguf(tmp_path / "base.gguf", tiny_network("llama_tied"), template=None)
    write_gguf(tmp_path / "chat.gguf", tiny_network("llama_tied"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n')
    constitution = Path(__file__).resolve().parents[3] / "examples" / "assistant.yaml"
    (tmp_path / "run.toml").write_text(
        f'policy = "base.gguf"\njudge = "chat.gguf"\nprompts = "p.jsonl"\nconstitution = "{constitution}"\n'
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run(monkeypatch, "check", tmp_path / "run.toml") == 2
    captured = capsys.readouterr()
    assert "warning: the file has no chat template" in captured.out
    assert "chat template" in captured.err
    assert captured.out.count("once for this content") == 2
