from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.checkpoint import save_checkpoint
from solon.errors import RunFailedError


@dataclass
class SavingLearner:
    """Saves two small files; `error` comes after the first, `elsewhere` saves where nobody looks."""

    text: str = "weights"
    error: Exception | None = None
    elsewhere: bool = False

    async def save(self, path: str) -> None:
        if self.elsewhere:
            return
        (Path(path) / "policy").mkdir()
        (Path(path) / "policy" / "model.safetensors").write_text(self.text)
        if self.error is not None:
            raise self.error
        (Path(path) / "critic.safetensors").write_text("critic")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def save(directory: Path, learner: Any, *, step: int = 3) -> Path:
    return await save_checkpoint(directory, learner, step=step, ledger={"committed": 48}, config_hash="abc")


async def test_every_file_is_in_the_manifest_with_its_digest_and_latest_names_the_folder(tmp_path: Path):
    path = await save(tmp_path, SavingLearner())
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["config_hash"]) == (3, "abc")
    files = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert files == {*manifest["files"], "manifest.json"} >= {"ledger.json", "policy/model.safetensors"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    assert (tmp_path / "LATEST").read_text() == "step-000003\n"


async def test_a_checkpoint_that_fails_halfway_leaves_the_last_one_in_force(tmp_path: Path):
    await save(tmp_path, SavingLearner())
    for broken in (SavingLearner(error=OSError("disk")), SavingLearner(elsewhere=True)):
        with pytest.raises((OSError, RunFailedError)):
            await save(tmp_path, broken, step=4)
        assert (tmp_path / "LATEST").read_text() == "step-000003\n"
        assert not (tmp_path / "step-000004").exists()
    # What was left of it is no obstacle.
    assert (await save(tmp_path, SavingLearner(), step=4)).name == "step-000004"
    assert (tmp_path / "LATEST").read_text() == "step-000004\n"


async def test_a_learner_that_saves_on_another_machine_is_found(tmp_path: Path):
    with pytest.raises(RunFailedError, match="shared file system"):
        await save(tmp_path, SavingLearner(elsewhere=True))


async def test_the_same_step_may_be_saved_again(tmp_path: Path):
    await save(tmp_path, SavingLearner())
    path = await save(tmp_path, SavingLearner(text="newer"))
    assert (path / "policy" / "model.safetensors").read_text() == "newer"
    assert names_in(tmp_path) == ["LATEST", "step-000003"]
