from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.pools.base import worker_environment
from tests.conftest import PRIVATE

pytestmark = pytest.mark.ray
VARIABLES = ("CUDA_VISIBLE_DEVICES", "NEURON_RT_VISIBLE_CORES")


@ray.remote
class Environment:
    def variables(self) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in VARIABLES}


@pytest.fixture(scope="module")
def cluster_with_devices(pytestconfig: pytest.Config) -> Iterator[Any]:
    """Ray believes any number of GPUs that it is given."""
    directory = tempfile.mkdtemp(prefix="r", dir=pytestconfig.stash[PRIVATE])
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        resources={"neuron_cores": 1},
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 * 2**20,
        _temp_dir=str(Path(directory)),
    )
    yield ray
    ray.shutdown()


def seen(num_gpus: float) -> dict[str, str | None]:
    actor = Environment.options(  # type: ignore[attr-defined]
        num_cpus=0.1, num_gpus=num_gpus, runtime_env=worker_environment(1, on_gpu=num_gpus > 0)
    ).remote()
    return dict(ray.get(actor.variables.remote(), timeout=60))


def test_an_actor_without_gpus_sees_no_device_of_any_kind_and_one_with_a_share_sees_one(cluster_with_devices):
    assert seen(0) == {
        "CUDA_VISIBLE_DEVICES": "",
        "NEURON_RT_VISIBLE_CORES": "",
    }
    assert seen(0.5)["CUDA_VISIBLE_DEVICES"] in ("0", "1")
