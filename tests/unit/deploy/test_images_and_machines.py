"""deploy/container and ray_cluster.local.yaml, without building an image or reaching a machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import solon
from cluster.config.run_file import RunFile
from cluster.placement.node_types import extract, node_types
from cluster.placement.placement import Node, Supply, check_cluster
from tests.unit.deploy.pins import pinned

ROOT = Path(__file__).resolve().parents[3]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KINDS = ("cpu", "cuda")


def container_file(kind: str) -> list[str]:
    """Its instructions, each on one line, without comments."""
    text = (ROOT / "deploy" / "container" / f"Containerfile.{kind}").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def local_cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.local.yaml").read_text())
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_installs_the_pinned_packages_with_the_extra_of_its_accelerator(kind: str):
    (install,) = [line for line in container_file(kind) if "-r pyproject.toml" in line]
    assert f"uv=={pinned('uv')} " in install
    assert "-c constraints.txt --override overrides.txt" in install
    extras = re.findall(r"--extra (\S+)", install)
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert ("cpu" in extras, "gpu" in extras) == (kind == "cpu", kind == "cuda")
    assert ("--torch-backend cpu" in install) == (kind == "cpu")
    assert not {"dev", "bench"} & set(extras)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_runs_as_a_user_with_a_number_and_not_as_root(kind: str):
    lines = container_file(kind)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["1000:1000"]
    after = lines[lines.index("USER 1000:1000") :]
    assert not [line for line in after if "apt-get" in line or "useradd" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_copies_only_what_exists(kind: str):
    copies = [line.split()[1:-1] for line in container_file(kind) if line.startswith("COPY ")]
    sources = [name for words in copies for name in words if not name.startswith("--")]
    assert sources == ["pyproject.toml", "constraints.txt", "overrides.txt", "."]
    assert all((ROOT / name).exists() for name in sources)


def test_the_cuda_base_has_the_version_of_cuda_of_the_pins_and_both_have_a_supported_python(script: Any):
    (base,) = [line.split()[1] for line in container_file("cuda") if line.startswith("FROM ")]
    version = base.partition(":")[2].split(".")[:2]
    assert version == pinned("cuda-toolkit").split(".")[:2]
    for kind in KINDS:
        found = set(re.findall(r"python:?(3)\.(\d+)", " ".join(container_file(kind))))
        assert {(int(major), int(minor)) for major, minor in found} <= set(script("setup").SUPPORTED)


def test_images_leave_out_what_stays_behind_when_a_folder_is_submitted():
    def plain(name: str) -> list[str]:
        lines = (ROOT / name).read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    ignored = {line.removeprefix("**/") for line in plain(".dockerignore")}
    assert ignored == {line.strip("/") for line in plain(".rayignore")}
    anywhere = {line.strip("/") for line in plain(".rayignore") if "*" in line or line == "__pycache__/"}
    assert all(f"**/{name}" in plain(".dockerignore") for name in anywhere)


def test_the_file_for_own_machines_is_valid_to_ray_and_keeps_all_of_them():
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(local_cluster())
    validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(local_cluster()["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError, match="head_adress"):
        validate_config(prepare_config({**local_cluster(), "head_adress": "x"}))


def test_own_machines_ask_for_the_token_and_the_head_has_no_cpus():
    config = local_cluster()
    (token,) = config["file_mounts"]
    for role in ("head", "worker"):
        (start,) = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
        assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token};" in start
    head = config["head_start_ray_commands"][1]
    assert "--num-cpus=0 --num-gpus=0" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert config["docker"]["image"] == f"REGISTRY/solon:{solon.__version__}"


@pytest.mark.parametrize("example", ["one_gpu.toml", "nursery.toml"])
def test_the_run_files_for_own_machines_fit_on_one_of_them_and_ask_for_no_labels(example: str):
    run = RunFile.load(ROOT / "examples" / example)
    assert [one.labels for one in (run.rollout, run.judging, run.learn)] == [{}, {}, {}]
    head = Node(resources={"CPU": 0.0}, type="head", is_head=True)
    check_cluster(run, Supply(nodes=[head, Node(resources={"CPU": 16.0, "GPU": 1.0})]))


def test_solon_cannot_know_what_own_machines_have_before_they_join():
    from ray.autoscaler._private.util import prepare_config

    assert node_types(extract(prepare_config(local_cluster())))[0] is None
