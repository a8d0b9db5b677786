"""Sweeps of a compression as Ray tasks: each worker process loads the model once and measures chunk after chunk.

    Compression(request, pairs, sweeper=RaySweeper(4)).run()

Results arrive one chunk at a time and are kept by the driver, so a start after a loss measures only what is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.pools.base import worker_environment
from cluster.ray_session.session import cluster
from compression.live import LiveModel
from compression.pairs import Pair, Scores, scores_of
from compression.sensitivity import Planned, Sweep, measured
from solon.errors import InputError, RunFailedError, one_line

MOST_CHUNK = 8
"""Sweeps of a task: what is lost with a worker."""
CHUNKS_EACH = 4
"""Tasks of a worker, at least, so that none waits long for the last one."""
MAX_RETRIES = 3
"""Of a task whose process died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySweeper:
    """Opens the cluster of `RAY_ADDRESS`, or a local one, for as long as sweeps are measured."""

    workers: int
    """Tasks at a time, each with one CPU and one thread."""
    gpus_per_worker: float = 0.0
    """Share of a GPU for each; above 0 the model is moved there, and scored there also as it is."""

    def __call__(
        self, model: Path, pairs: Sequence[Pair], before: Scores, planned: Sequence[Planned]
    ) -> Iterator[Sweep]:
        """Raises InputError when the cluster is refused or too small, RunFailedError when a task fails."""
        with cluster(dashboard=False):
            yield from sweeps_on_ray(
                model, pairs, before, planned, workers=self.workers, gpus_per_worker=self.gpus_per_worker
            )


def sweeps_on_ray(
    model: Path,
    pairs: Sequence[Pair],
    before: Scores,
    planned: Sequence[Planned],
    *,
    workers: int,
    gpus_per_worker: float = 0.0,
) -> Iterator[Sweep]:
    """Measure on the cluster that is open; sweeps come in the order in which tasks finish. model: a directory that all
    machines of the cluster can read."""
    _require_room(gpus_per_worker)
    task: Any = ray.remote(_measure).options(
        num_cpus=1,
        num_gpus=gpus_per_worker,
        max_retries=MAX_RETRIES,
        runtime_env=worker_environment(1, on_gpu=gpus_per_worker > 0),
    )
    shared = ray.put((list(pairs), before))
    left, running = chunks_of(planned, workers), list[Any]()
    try:
        while left or running:
            while left and len(running) < workers:
                running.append(task.remote(str(model.absolute()), shared, left.pop(0), gpus_per_worker > 0))
            (done, *_), running = ray.wait(running, num_returns=1)
            yield from _result(done)
    finally:
        for one in running:
            ray.cancel(one, force=True)


def chunks_of(planned: Sequence[Planned], workers: int) -> list[list[Planned]]:
    """Chunks for tasks: several for each worker, none longer than MOST_CHUNK."""
    size = max(1, min(MOST_CHUNK, -(-len(planned) // (CHUNKS_EACH * workers))))
    return [list(planned[start : start + size]) for start in range(0, len(planned), size)]


def _require_room(gpus: float) -> None:
    """Without it tasks would wait for ever."""
    there = ray.cluster_resources().get("GPU", 0.0)
    if gpus > there:
        raise InputError(
            f"--gpus-per-worker is {gpus:g}, but the cluster has {there:g} GPUs; lower it, or leave it out to measure "
            "on CPUs"
        )


def _result(done: Any) -> list[Sweep]:
    try:
        found: list[Sweep] = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise RunFailedError(f"a sweep failed on a worker: {one_line(str(error.cause))}") from error
    except ray.exceptions.RayError as error:
        raise RunFailedError(
            f"a worker of the sweeps died {MAX_RETRIES + 1} times: {one_line(str(error))}; start again with fewer "
            "--workers: what is finished is kept"
        ) from error
    return found


def _measure(model: str, shared: tuple[list[Pair], Scores], planned: list[Planned], on_gpu: bool) -> list[Sweep]:
    """In a worker process."""
    import torch

    torch.set_num_threads(1)
    pairs, before = shared
    live = _live(model, on_gpu)
    if on_gpu:  # rounding differs between devices
        before = _scored(model, tuple(pairs))
    return list(measured(live, pairs, before, planned))


@functools.lru_cache(maxsize=1)
def _live(model: str, on_gpu: bool) -> LiveModel:
    """Once in a process."""
    live = LiveModel.load(Path(model))
    if on_gpu:
        live.model.to("cuda")
    return live


@functools.lru_cache(maxsize=1)
def _scored(model: str, pairs: tuple[Pair, ...]) -> Scores:
    """By the model as it is, on a GPU, once in a process."""
    return scores_of(_live(model, True).model, pairs)
