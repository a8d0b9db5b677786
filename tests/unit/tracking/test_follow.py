"""Runs in trackers: every step once and in order, also of a resumed run, and the real packages with a local store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from solon.errors import InputError
from solon.tracking.__main__ import main
from solon.tracking.follow import Follower
from solon.tracking.sinks import open_sink, track


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def settings(self, config: Mapping[str, Any]) -> None:
        self.calls.append(("settings", dict(config)))

    def step(self, step: int, values: Mapping[str, float], *, time_s: float) -> None:
        self.calls.append(("step", step, dict(values)))

    def back_to(self, step: int) -> None:
        self.calls.append(("back_to", step))

    def ended(self, status: str, values: Mapping[str, float]) -> None:
        self.calls.append(("ended", status, dict(values)))

    def close(self) -> None:
        self.calls.append(("close",))


def line(step: int, reward: float) -> str:
    return json.dumps({"step": step, "time": 10.0 + step, "learn/reward/mean": reward, "a/odd/x": None}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"policy": "p", "learn": {"rate": 0.1}}))
    (path / "metrics.jsonl").write_text(line(0, 1.0) + line(1, 2.0))
    return path


def end(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"status": "completed", "eval": {"after": {"mean": 0.9}}, "steps": 2}))


def test_a_run_is_followed_to_its_end(run: Path):
    sink = Kept()
    follower = Follower(run, [sink], say=print)
    assert not follower.poll()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line(2, 3.0) + '{"step": 3, "ti')
    assert not follower.poll()
    end(run)
    assert follower.poll()
    follower.close()
    assert sink.calls == [
        ("settings", {"policy": "p", "learn.rate": 0.1}),
        ("step", 0, {"learn/reward/mean": 1.0}),
        ("step", 1, {"learn/reward/mean": 2.0}),
        ("step", 2, {"learn/reward/mean": 3.0}),
        ("ended", "completed", {"summary/eval.after.mean": 0.9, "summary/steps": 2}),
        ("close",),
    ]


def test_a_resumed_run_goes_back_before_it_repeats_a_step(run: Path):
    sink = Kept()
    follower = Follower(run, [sink], say=print)
    follower.poll()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line(1, 9.0) + line(2, 9.5))
    follower.poll()
    assert [call[:2] for call in sink.calls[3:]] == [("back_to", 1), ("step", 1), ("step", 2)]


def test_a_tracker_that_fails_is_left_out_and_the_others_continue(run: Path):
    class Broken(Kept):
        def step(self, step: int, values: Mapping[str, float], *, time_s: float) -> None:
            raise OSError("no space")

    said: list[str] = []
    kept = Kept()
    follower = Follower(run, [Broken(), kept], say=said.append)
    follower.poll()
    assert [call[0] for call in kept.calls] == ["settings", "step", "step"]
    assert said == ["Broken failed and gets nothing more: OSError: no space"]
    assert follower.failed


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"expected config\.json"):
        track(tmp_path, {}, follow=False, say=print)


def test_a_missing_package_is_named_with_what_to_do(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    monkeypatch.setitem(__import__("sys").modules, "mlflow.entities", None)
    with pytest.raises(InputError, match=r"python -P -m solon\.tracking"):
        open_sink("mlflow", "sqlite:///x.db", run)


def test_tensorboard_reads_the_curves_of_a_resumed_run(run: Path, tmp_path: Path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with (run / "metrics.jsonl").open("a") as file:
        file.write(line(1, 9.0) + line(2, 9.5))
    end(run)
    assert main([str(run), "--tensorboard", str(tmp_path / "tb")]) == 0
    found = EventAccumulator(str(tmp_path / "tb" / "mine"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("learn/reward/mean")] == [(0, 1.0), (1, 9.0), (2, 9.5)]
    assert found.Scalars("summary/eval.after.mean")[0].value == pytest.approx(0.9)


def test_wandb_keeps_a_run_offline(run: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    end(run)
    assert main([str(run), "--wandb", "solon"]) == 0
    (kept,) = (run.parent / "wandb").rglob("*.wandb")
    content = kept.read_bytes()
    assert b"learn/reward/mean" in content
    assert b"summary/eval.after.mean" in content


def test_mlflow_keeps_steps_settings_and_the_end(run: Path, tmp_path: Path):
    pytest.importorskip("mlflow", reason="the package mlflow is not installed: its pins conflict with Solon's")
    from mlflow.tracking import MlflowClient

    end(run)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert main([str(run), "--mlflow", uri]) == 0
    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("solon").experiment_id])
    history = client.get_metric_history(found.info.run_id, "learn/reward/mean")
    assert [(one.step, one.value) for one in history] == [(0, 1.0), (1, 2.0)]
    assert found.data.params["learn.rate"] == "0.1"
    assert found.info.status == "FINISHED"


def test_a_tracker_that_cannot_be_opened_ends_with_two(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    (tmp_path / "file").write_text("")
    assert main([str(run), "--tensorboard", str(tmp_path / "file")]) == 2
    assert "cannot be opened" in capsys.readouterr().err
