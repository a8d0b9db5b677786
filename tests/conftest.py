"""Shared by all tests: they touch nothing of the developer's, and the quick ones come first.

A test's folder is its tier: `unit`, `ray`, `e2e`, `gpu` or `soak`; the folder gives it the marker of that name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TIERS = ("unit", "ray", "e2e", "gpu", "soak")
TESTS = Path(__file__).parent

PRIVATE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Settings for this process and all that it starts, made before any test module is imported."""
    # /tmp and a short name, for any TMPDIR: a socket below it may have 107 characters in all.
    config.stash[PRIVATE] = private = Path(tempfile.mkdtemp(prefix="solon-", dir="/tmp"))
    # Growing models takes minutes: a developer may keep the cache between runs.
    cache = os.environ.get("SOLON_TEST_CACHE") or str(private / "cache")
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_HOME=str(Path(cache) / "huggingface"),
        XDG_CACHE_HOME=cache,
        # Explicit: by default Ray turns token auth on and writes into the developer's ~/.ray.
        RAY_AUTH_MODE="disabled",
        RAY_USAGE_STATS_ENABLED="0",
        # Under `uv run`, Ray would make every worker resolve its own environment.
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        TOKENIZERS_PARALLELISM="false",
    )
    # A cluster that the developer has open is not for tests.
    os.environ.pop("RAY_ADDRESS", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[PRIVATE], ignore_errors=True)


def tier(item: pytest.Item) -> str:
    """The folder of a test. `tier(<tests/ray/test_ledger.py>)` is `"ray"`."""
    folder = item.path.relative_to(TESTS).parts[0]
    return folder if folder in TIERS else "unit"


def no_cuda() -> str | None:
    """Why `gpu` tests cannot run here, or nothing."""
    # The driver is asked first: importing torch takes seconds.
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        return "no NVIDIA driver"
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if (folder := tier(item)) != "unit":
            item.add_marker(folder)
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    items.sort(key=lambda item: TIERS.index(tier(item)))

    asked: str = config.getoption("markexpr")
    if any("gpu" in item.keywords for item in items) and "not gpu" not in asked and (reason := no_cuda()):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))
    if "soak" not in asked:
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="takes long; ask for it with `make test-soak`"))


@pytest.fixture(scope="module")
def ray_cluster(pytestconfig: pytest.Config) -> Iterator[Any]:
    """A Ray cluster of one node with two CPUs, for the tests of one module.

    def test_actor_answers(ray_cluster):
        assert ray_cluster.get(Echo.remote().say.remote(1)) == 1
    """
    import ray

    directory = Path(tempfile.mkdtemp(prefix="r", dir=pytestconfig.stash[PRIVATE]))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 2**20,
        _temp_dir=str(directory),
    )
    try:
        yield ray
    finally:
        ray.shutdown()
