"""A policy for the hub: what is sent, what never is, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from solon.cli.push import run_push
from solon.errors import InputError, RunFailedError
from solon.hub.push import plan
from tests.unit.attacks import MARKUP
from tests.unit.report.run_folders import make_run, write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = make_run(tmp_path / "mine")
    policy = path / "checkpoints" / "step-000004" / "policy"
    policy.mkdir(parents=True)
    (policy / "model.safetensors").write_bytes(b"weights")
    (policy / "config.json").write_text('{"model_type": "llama"}')
    (policy / "notes.log").write_text("stays")
    (path / "checkpoints" / "step-000004" / "manifest.json").write_text("{}")
    (path / "checkpoints" / "LATEST").write_text("step-000004\n")
    return path


def policy_of(run: Path) -> Path:
    return run / "checkpoints" / "step-000004" / "policy"


def test_the_last_checkpoint_is_sent_with_a_card_that_the_hub_reads(run: Path):
    found = plan(run)
    assert [one.name for one in found.files] == ["config.json", "model.safetensors"]
    assert found.left == ("notes.log",)
    card = ModelCard(found.card)
    assert card.data.to_dict()["tags"] == ["solon", "rlaif"]
    assert "| polite | 6 | 0.000 | 1.000 [0.610, 1.000] | 1.000 [0.541, 1.000] |" in found.card


def test_a_dry_run_sends_nothing(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    told = run_push(str(run), "org/model", dry_run=True, private=False, direct=False, as_json=False)
    assert told["sent"] is False
    assert "nothing was sent" in capsys.readouterr().out


def test_files_go_into_a_pull_request(run: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo: str, **options: Any) -> None:
            calls.append((repo, options))

        def create_commit(self, repo: str, operations: Any, **options: Any) -> Any:
            calls.append(([one.path_in_repo for one in operations], options["create_pr"]))
            return type("Done", (), {"pr_url": "https://hub/pr/1", "commit_url": ""})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    told = run_push(str(run), "org/model", dry_run=False, private=True, direct=False, as_json=True)
    assert told["address"] == "https://hub/pr/1"
    assert calls == [
        ("org/model", {"private": True, "exist_ok": True}),
        (["config.json", "model.safetensors", "README.md"], True),
    ]


def test_the_hubs_refusal_is_told_without_a_key(run: Path, monkeypatch: pytest.MonkeyPatch):
    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, *_: Any, **__: Any) -> None:
            raise ValueError("401 for hf_" + "a1" * 12)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(RunFailedError, match=r"401 for \*\*\*"):
        run_push(str(run), "org/model", dry_run=False, private=False, direct=False, as_json=True)


def test_a_pickle_is_refused(run: Path):
    (policy_of(run) / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="is a pickle"):
        plan(run)


def test_a_secret_is_refused_and_not_shown(run: Path):
    made_up = "hf_" + "a1" * 12
    (policy_of(run) / "tokenizer_config.json").write_text(json.dumps({"key": made_up}))
    with pytest.raises(InputError, match="looks like a secret") as caught:
        plan(run)
    assert made_up not in str(caught.value)


@pytest.mark.parametrize("repo", ["model", "a/b/c", "../x", "a b/c", ""])
def test_a_name_that_is_none_of_the_hub_is_refused(run: Path, repo: str):
    with pytest.raises(InputError, match="like org/model"):
        run_push(str(run), repo, dry_run=True, private=False, direct=False, as_json=True)


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="is neither a run nor a model"):
        plan(tmp_path)


@pytest.mark.parametrize("text", MARKUP)
def test_names_stay_text_in_the_card(run: Path, text: str):
    write(run / "config.json", {"policy": text, "judge": text, "steps": 4})
    card = plan(run).card
    assert "<script>" not in card
    assert "<img" not in card


def test_the_card_names_no_folder_of_this_machine(run: Path):
    write(run / "config.json", {"policy": "/home/ada/models/tiny", "judge": "org/judge", "steps": 4})
    card = plan(run).card
    assert "/home/ada" not in card
    assert "| started from | tiny |" in card
