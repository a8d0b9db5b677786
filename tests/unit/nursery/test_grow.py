"""A nursery is grown once and found ever after."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nursery import grow as growing
from nursery.grow import Nursery, fingerprint, grow
from nursery.progress import PARTS, Display


def plant(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "report.json").write_text(json.dumps({"seconds": 1.0}), encoding="utf-8")


def test_a_grown_nursery_is_found_again(tmp_path: Path):
    place = tmp_path / f"nursery-{fingerprint(seed=0, effort=1.0)}"
    plant(place)
    nursery = grow(tmp_path, progress=False)
    assert nursery == Nursery.at(place)
    assert nursery.judge == place / "judge"
    assert nursery.report["seconds"] == 1.0


def test_another_seed_or_effort_is_another_nursery():
    prints = {fingerprint(seed=s, effort=e) for s in (0, 1) for e in (0.1, 1.0)}
    assert len(prints) == 4
    assert fingerprint(seed=0, effort=1.0) in prints


def test_two_that_grow_at_once_grow_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built = []

    def build(place: Path, display: Display, *, seed: int, effort: float) -> None:
        built.append(place)
        time.sleep(0.2)
        plant(place)

    monkeypatch.setattr(growing, "_build", build)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: grow(tmp_path, progress=False), range(2))
    assert first == second
    assert len(built) == 1


def test_leftovers_of_a_killed_growth_are_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = fingerprint(seed=0, effort=1.0)
    stale, others = tmp_path / f".growing-nursery-{key}-abc", tmp_path / ".growing-nursery-other-abc"
    for folder in (stale, others):
        (folder / "nursery").mkdir(parents=True)
    monkeypatch.setattr(growing, "_run_workers", lambda *_, **__: {})
    grow(tmp_path, progress=False)
    assert not stale.exists()
    assert others.exists()
    assert [path.name for path in tmp_path.glob(".growing-*")] == [others.name]


def test_the_large_judge_is_grown_when_it_is_first_asked_for_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plant(tmp_path / f"nursery-{fingerprint(seed=0, effort=1.0)}")
    nursery, built = grow(tmp_path, progress=False), []
    assert not nursery.large_judge.exists()

    def build(place: Path, policy: Path, display: Display, *, seed: int, effort: float) -> None:
        built.append((place, policy))
        place.mkdir()
        (place / growing.LARGE_REPORT).write_text('{"held_out": {}}')

    monkeypatch.setattr(growing, "_build_large", build)
    assert [growing.grow_large_judge(nursery, progress=False) for _ in range(2)] == [{"held_out": {}}] * 2
    assert built == [(nursery.large_judge, nursery.policy)]


def test_progress_away_from_a_terminal_is_a_line_for_each_quarter(capsys: pytest.CaptureFixture[str]):
    with Display(enabled=True) as display:
        for percent in range(1, 101):
            display.show("judge", percent / 100)
    lines = [line for line in capsys.readouterr().err.splitlines() if PARTS["judge"] in line and "%" in line]
    assert [line.split()[-1] for line in lines] == ["25%", "50%", "75%", "100%"]
