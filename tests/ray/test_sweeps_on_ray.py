"""Sweeps on workers are those of one process, and a lost worker loses its chunk alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import sweeps
from cluster.sweeps import RaySweeper, chunks_of, sweeps_on_ray
from compression.live import LiveModel
from compression.pairs import Pair, Scores, scores_of
from compression.sensitivity import Planned, Sweep, SweepFile, measured, plan_of, sweeps_of
from solon.errors import InputError, RunFailedError
from tests.models import make_model
from tests.unit.compression.test_workflow import make_pairs

pytestmark = pytest.mark.ray
FORMS = ("w4a16-g32", "w8a8")


class World:
    """A model, pairs with their scores, a plan, and its sweeps in this process."""

    def __init__(self, folder: Path) -> None:
        self.model = make_model(folder / "model")
        live = LiveModel.load(self.model)
        self.pairs: list[Pair] = make_pairs(6)
        self.before: Scores = scores_of(live.model, self.pairs)
        self.plan: list[Planned] = plan_of(live.units, FORMS)
        self.here: list[Sweep] = list(measured(live, self.pairs, self.before, self.plan))

    def require_equal(self, found: list[Sweep]) -> None:
        assert [one.key for one in found] == [one.key for one in self.here]
        for one, other in zip(found, self.here, strict=True):
            for name in ("soft_flips", "flips", "net_flips", "margin_damage", "nll"):
                assert getattr(one.damage, name) == pytest.approx(getattr(other.damage, name), abs=1e-6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("sweeps"))


def test_two_workers_measure_what_one_process_does_and_a_second_start_measures_nothing(
    ray_cluster: Any, world: World, tmp_path: Path
):
    def on_workers(missing: Any) -> Any:
        return sweeps_on_ray(world.model, world.pairs, world.before, missing, workers=2)

    ticks: list[float] = []
    world.require_equal(sweeps_of(world.plan, SweepFile(tmp_path / "s"), on_workers, ticks.append))
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1.0
    again = sweeps_of(world.plan, SweepFile(tmp_path / "s"), lambda missing: pytest.fail("it was measured"))
    world.require_equal(again)


def dies_once(model: str, shared: Any, planned: list[Planned], on_gpu: bool) -> list[Sweep]:
    """The first process with the last chunk is killed."""
    mark = Path(model).with_name("died")
    if planned[-1].key[1] == "1.down" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(model, shared, planned, on_gpu)


measure = sweeps._measure


def test_a_worker_that_dies_loses_its_chunk_alone_which_is_measured_again(
    ray_cluster: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweeps, "_measure", dies_once)
    found = sweeps_on_ray(world.model, world.pairs, world.before, world.plan[-4:], workers=2)
    by_key = {one.key: one for one in found}
    assert by_key.keys() == {one.key for one in world.plan[-4:]}
    assert (world.model.parent / "died").exists()


def test_a_sweep_that_fails_is_one_message_with_its_cause(ray_cluster: Any, world: World, tmp_path: Path):
    some = sweeps_on_ray(tmp_path / "none", world.pairs, world.before, world.plan, workers=1)
    with pytest.raises(RunFailedError, match=r"a sweep failed on a worker: .*none"):
        next(some)


def test_more_of_a_gpu_than_the_cluster_has_is_refused(ray_cluster: Any, world: World):
    some = sweeps_on_ray(world.model, world.pairs, world.before, world.plan, workers=1, gpus_per_worker=0.5)
    with pytest.raises(InputError, match=r"--gpus-per-worker is 0\.5, but the cluster has 0 GPUs"):
        next(some)


@pytest.mark.parametrize(
    ("number", "workers", "sizes"), [(17, 2, [3, 3, 3, 3, 3, 2]), (2, 8, [1, 1]), (90, 1, [8] * 11 + [2])]
)
def test_chunks_hold_every_sweep_once(world: World, number: int, workers: int, sizes: list[int]):
    plan = (world.plan * 4)[:number]
    chunks = chunks_of(plan, workers)
    assert [len(one) for one in chunks] == sizes
    assert [one for some in chunks for one in some] == plan


def test_a_sweeper_opens_a_cluster_of_its_own_and_closes_it(world: World, tmp_path: Path):
    ray.shutdown()  # that of the module
    found = RaySweeper(workers=1)(world.model, world.pairs, world.before, world.plan[:2])
    assert {one.key for one in found} == {one.key for one in world.plan[:2]}
    assert not ray.is_initialized()
