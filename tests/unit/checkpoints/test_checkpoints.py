"""Checkpoints: whole or absent, at whichever moment a process dies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from solon.checkpoints.folder import CheckpointFolder, read_checkpoint, verify
from solon.checkpoints.remote import download, upload
from solon.errors import InputError, RunFailedError
from solon.ledger.snapshot import LedgerSnapshot, SavedEntry, State
from solon.records import Feedback, Label
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_group

STAGES = ("saved", "written", "synced", "replacing", "renamed", "latest")


class Killed(BaseException):
    """The process ends here."""


def make_cut(*held: int) -> LedgerSnapshot:
    entries = tuple(
        SavedEntry(ordinal=o, attempt=0, state=State.GENERATED, head=0, nbytes=10, failures=0, losses=0) for o in held
    )
    return LedgerSnapshot(admitted=20, committed=20 - len(held), dropped={}, entries=entries)


def write(
    folder: CheckpointFolder, step: int, *, text: str = "weights", held: tuple[Any, ...] = (), **extra: Any
) -> Path:
    scratch = folder.begin(step)
    (scratch / "policy").mkdir()
    (scratch / "policy" / "model.safetensors").write_text(text)
    cut = make_cut(*(group.ordinal for group, _ in held))
    given = {"run": {"step": step}, **extra}
    return folder.finish(scratch, step=step, config_hash="abc", ledger=cut, held=held, **given)


def test_every_file_is_in_the_manifest_with_its_digest_and_latest_names_the_folder(tmp_path: Path):
    path = write(CheckpointFolder(tmp_path), 3)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["config_hash"]) == (3, "abc")
    files = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert files == {*manifest["files"], "manifest.json"} >= {"ledger.json", "run.json", "policy/model.safetensors"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    assert (tmp_path / "LATEST").read_text() == "step-000003\n"


def test_held_groups_and_their_labels_come_back_to_the_bit(tmp_path: Path):
    labels = (
        Label(task="pairwise", principle_id="p", rollouts=(0, 1), verdict=Verdict(status=Status.OK, margin=0.1 + 0.2)),
        Label(
            task="pairwise",
            principle_id="q",
            rollouts=(0, 1),
            verdict=Verdict(status=Status.TIMEOUT, margin=None, detail="slow"),
        ),
    )
    feedback = Feedback(ordinal=7, attempt=1, rewards_G=(0.1 + 0.2, None), labels=labels)
    labelled, bare = make_group(7, attempt=1, version=3), make_group(9, texts=("a\x00b", "\u202e"))
    write(CheckpointFolder(tmp_path), 3, held=((labelled, feedback), (bare, None)))
    checkpoint = CheckpointFolder(tmp_path).last()
    assert checkpoint is not None
    assert checkpoint.held[7][1] == feedback
    assert checkpoint.held[9][1] is None
    for ours, theirs in ((labelled, checkpoint.held[7][0]), (bare, checkpoint.held[9][0])):
        assert (ours.ordinal, ours.attempt, ours.prompt) == (theirs.ordinal, theirs.attempt, theirs.prompt)
        assert ours.prompt_token_ids.tobytes() == theirs.prompt_token_ids.tobytes()
        for one, other in zip(ours.rollouts, theirs.rollouts, strict=True):
            assert one.logprobs.tobytes() == other.logprobs.tobytes()
            assert one.token_ids.tobytes() == other.token_ids.tobytes()
            assert (one.segments, one.text, one.finish_reason) == (other.segments, other.text, other.finish_reason)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [3, 6], ids=["the same step again", "the next step"])
def test_a_whole_checkpoint_exists_whichever_stage_the_process_dies_in(tmp_path: Path, stage: str, step: int):
    write(CheckpointFolder(tmp_path, keep=1), 3, text="first")
    dying = CheckpointFolder(tmp_path, keep=1)

    def die(name: str) -> None:
        if name == stage:
            raise Killed

    dying.failpoint = die
    with pytest.raises(Killed):
        write(dying, step, text="second")
    found = CheckpointFolder(tmp_path).last()
    assert found is not None
    text = (found.path / "policy" / "model.safetensors").read_text()
    assert (found.step, text) in {(3, "first"), (step, "second")}
    # Leftovers do not obstruct the next one, and do not stay.
    write(CheckpointFolder(tmp_path, keep=1), 9, text="third")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "step-000009"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "policy" / "model.safetensors").write_text("wEights"), "model.safetensors is damaged"),
        (lambda p: (p / "ledger.json").unlink(), "ledger.json cannot be read"),
        (lambda p: (p / "manifest.json").write_text("{"), "no usable manifest.json"),
        (lambda p: (p / "manifest.json").unlink(), "no usable manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(tmp_path: Path, damage: Any, message: str):
    folder = CheckpointFolder(tmp_path)
    write(folder, 3)
    damage(write(folder, 6))
    damaged: list[str] = []
    found = folder.last(damaged=damaged)
    assert found is not None
    assert found.step == 3
    (said,) = damaged
    assert message in said
    assert "step-000006" in said


def test_a_manifest_cannot_name_files_outside_of_its_checkpoint(tmp_path: Path):
    path = write(CheckpointFolder(tmp_path), 3)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="lies outside of it"):
        verify(path)


def test_a_ledger_that_does_not_add_up_is_refused(tmp_path: Path):
    path = write(CheckpointFolder(tmp_path), 3)
    ledger = json.loads((path / "ledger.json").read_text()) | {"committed": 19}
    (path / "ledger.json").write_text(json.dumps(ledger))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["ledger.json"] = hashlib.sha256((path / "ledger.json").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="20 groups were admitted, but 19 are committed, 0 dropped and 0 held"):
        read_checkpoint(path)


def test_the_oldest_checkpoints_are_retired_first_and_spared_ones_stay(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (2, 4, 6, 8):
        write(folder, step, spared=[2])
    assert folder.steps() == [2, 6, 8]
    everything = CheckpointFolder(tmp_path, keep=0)
    write(everything, 10)
    assert everything.steps() == [2, 6, 8, 10]


def test_a_learner_that_saves_nothing_in_the_given_folder_is_an_error(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(RunFailedError, match=r"saved nothing .* shared file system"):
        folder.finish(folder.begin(3), step=3, config_hash="", ledger=make_cut(), held=(), run={})
    assert folder.last() is None


def test_a_checkpoint_goes_to_a_url_and_comes_back_from_it_whole(tmp_path: Path):
    ours = CheckpointFolder(tmp_path / "here")
    url = (tmp_path / "store").as_uri()
    assert download(url, ours) is None
    for step in (3, 6):
        upload(write(ours, step, text=f"weights {step}"), url)
    elsewhere = CheckpointFolder(tmp_path / "there")
    assert download(url, elsewhere) == "step-000006"
    found = elsewhere.last()
    assert found is not None
    assert (found.path / "policy" / "model.safetensors").read_text() == "weights 6"
    assert download(url, elsewhere, whole=6) is None  # it is here already


def test_a_damaged_newest_checkpoint_is_fetched_again(tmp_path: Path):
    folder, url = CheckpointFolder(tmp_path / "here"), (tmp_path / "store").as_uri()
    for step in (3, 6):
        upload(write(folder, step, text=f"weights {step}"), url)
    (folder.path / "step-000006" / "policy" / "model.safetensors").write_text("rubbish")
    assert download(url, folder, whole=3) == "step-000006"
    found = folder.last()
    assert found is not None
    assert (found.step, (found.path / "policy" / "model.safetensors").read_text()) == (6, "weights 6")
    assert (folder.path / "LATEST").read_text() == "step-000006\n"
    assert sorted(p.name for p in folder.path.iterdir()) == ["LATEST", "step-000003", "step-000006"]


def test_the_store_is_searched_for_the_last_whole_checkpoint(tmp_path: Path):
    ours, store = CheckpointFolder(tmp_path / "here", keep=0), tmp_path / "store"
    for step in (2, 4, 6, 8):
        upload(write(ours, step), store.as_uri())
    (store / "step-000008" / "manifest.json").unlink()
    (store / "step-000006" / "ledger.json").write_text("{}")
    elsewhere, damaged = CheckpointFolder(tmp_path / "there"), list[str]()
    assert download(store.as_uri(), elsewhere, damaged=damaged) == "step-000004"
    assert elsewhere.steps() == [4]
    assert ["in the checkpoint store" in text for text in damaged] == [True, True]
    assert "step-000008" in damaged[0]
    assert "ledger.json is damaged" in damaged[1]
    assert download(store.as_uri(), CheckpointFolder(tmp_path / "third"), whole=4) is None


def test_a_checkpoint_in_the_store_that_is_younger_than_its_latest_is_of_another_branch(tmp_path: Path):
    ours, store = CheckpointFolder(tmp_path / "here", keep=0), tmp_path / "store"
    for step in (2, 8, 4):  # the run went back to step 2 and trained on
        upload(write(ours, step), store.as_uri())
    assert download(store.as_uri(), CheckpointFolder(tmp_path / "there")) == "step-000004"


def test_a_removed_run_directory_is_not_created_again_for_a_checkpoint(tmp_path: Path):
    with pytest.raises(RunFailedError, match="is gone: it was removed or moved"):
        CheckpointFolder(tmp_path / "run" / "checkpoints").begin(3)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_upload_is_not_used_as_a_checkpoint(tmp_path: Path):
    ours = CheckpointFolder(tmp_path / "here")
    store = tmp_path / "store"
    upload(write(ours, 3), store.as_uri())
    shutil.copytree(write(ours, 6), store / "step-000006")
    (store / "step-000006" / "manifest.json").unlink()
    assert download(store.as_uri(), CheckpointFolder(tmp_path / "there")) == "step-000003"


def test_a_failing_store_is_reported_without_its_address(tmp_path: Path):
    path = write(CheckpointFolder(tmp_path / "here"), 3)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunFailedError) as caught:
        upload(path, f"{blocked.as_uri()}/token=s3cret")
    assert "s3cret" not in str(caught.value)
    assert os.linesep not in str(caught.value)
    with pytest.raises(InputError, match="a URL that fsspec knows"):
        upload(path, "nosuchstore://bucket")


def test_a_learner_that_was_given_up_cannot_write_into_the_checkpoint_of_its_successor(tmp_path: Path):
    """Its machine was cut off in the middle of writing, and returns: both write the checkpoint of one step."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    theirs = folder.begin(3)
    ours = folder.begin(3)
    assert theirs != ours
    assert not theirs.exists()
    theirs.mkdir()
    (theirs / "learner.safetensors").write_text("of a learner that was given up")
    (ours / "learner.safetensors").write_text("ours")
    final = folder.finish(ours, step=3, config_hash="", ledger=make_cut(), held=(), run={})
    assert (final / "learner.safetensors").read_text() == "ours"
    folder.begin(4)
    assert not theirs.exists()
