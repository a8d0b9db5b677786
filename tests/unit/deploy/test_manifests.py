"""deploy/kuberay: keys, pins, placement, tokens and network, without a Kubernetes cluster.

`kuberay_1.7.0_keys.json` is a list of keys written by hand from KubeRay's field reference, not its CRDs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import solon
from cluster.config.run_file import RunFile
from cluster.placement.node_types import extract, node_types
from cluster.placement.placement import Node, Supply, check_cluster
from solon.errors import InputError
from tests.unit.deploy.pins import pinned

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "kuberay"
KEYS: dict[str, Any] = json.loads((Path(__file__).parent / "kuberay_1.7.0_keys.json").read_text())
LABEL = {"app.kubernetes.io/part-of": "solon"}


def resources() -> list[dict[str, Any]]:
    return [one for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def resource(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [one for one in resources() if one["kind"] == kind and name in ("", one["metadata"]["name"])]
    return found


def clusters() -> dict[str, dict[str, Any]]:
    """The cluster of each resource that has one, by kind."""
    return {
        "RayCluster": resource("RayCluster")["spec"],
        "RayJob": resource("RayJob")["spec"]["rayClusterSpec"],
        "RayService": resource("RayService")["spec"]["rayClusterConfig"],
    }


def templates() -> Iterator[dict[str, Any]]:
    for cluster in clusters().values():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]


def check(one: dict[str, Any]) -> None:
    jsonschema.validate(one, {"$ref": f"#/$defs/{one['kind']}", "$defs": KEYS["$defs"]})


def supply(cluster: dict[str, Any]) -> Supply:
    """What the cluster can grow to, as Ray's autoscaler and Solon read it."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "y"}, "spec": cluster})
    types, at_most = node_types(extract(config))
    return Supply(nodes=[Node(resources={"CPU": 0.0}, type="headgroup", is_head=True)], types=types, at_most=at_most)


@pytest.mark.parametrize("one", resources(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_every_key_of_a_manifest_is_in_the_list_of_known_keys(one: dict[str, Any]):
    check(one)


@pytest.mark.parametrize(
    ("kind", "place", "key"),
    [
        ("RayJob", ("spec",), "preRunningDeadlineSecond"),
        ("RayJob", ("spec", "rayClusterSpec", "authOptions"), "secretname"),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec"), "terminationGracePeriod"),
        ("RayService", ("spec",), "serveConfigV3"),
    ],
)
def test_a_misspelt_key_is_found(kind: str, place: tuple[str, ...], key: str):
    changed = copy.deepcopy(resource(kind))
    inner = changed
    for name in place:
        inner = inner[name]
    inner[key] = 1
    with pytest.raises(jsonschema.ValidationError, match=key):
        check(changed)


def test_images_and_ray_versions_are_those_of_the_pins():
    for cluster in clusters().values():
        assert cluster["rayVersion"] == pinned("ray")
    assert {one["spec"]["containers"][0]["image"] for one in templates()} == {f"REGISTRY/solon:{solon.__version__}"}


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_the_example_for_the_pools_fits_and_a_ninth_engine_does_not(kind: str):
    there = supply(clusters()[kind])
    example = ROOT / "examples" / "cluster.toml"
    check_cluster(RunFile.load(example), there)
    check_cluster(RunFile.load(example, overrides=["rollout.num_actors=8", "judging.num_actors=4"]), there)
    with pytest.raises(InputError, match="9 x rollout"):
        check_cluster(RunFile.load(example, overrides=["rollout.num_actors=9"]), there)


def test_the_example_for_the_pools_fits_the_cluster_of_the_launcher_too():
    types, at_most = node_types(extract(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())))
    head = Node(resources={"CPU": 0.0}, type="head", is_head=True)
    check_cluster(RunFile.load(ROOT / "examples" / "cluster.toml"), Supply(nodes=[head], types=types, at_most=at_most))


def test_every_cluster_has_a_token_a_head_without_cpus_and_the_second_autoscaler():
    for cluster in clusters().values():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "solon-ray-token"}
        assert cluster["headGroupSpec"]["resources"] == {"CPU": "0"}
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert not {"num-cpus", "num-gpus", "resources", "labels"} & set(group["rayStartParams"])
        assert all(one["labels"] == {"solon.io/pool": one["groupName"]} for one in cluster["workerGroupSpecs"])


def test_every_pod_has_the_shared_volume_two_minutes_and_no_rights():
    claim = resource("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for one in templates():
        spec, (container,) = one["spec"], one["spec"]["containers"]
        assert spec["terminationGracePeriodSeconds"] == 120
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        assert spec["volumes"] == [
            {"name": "shared", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
        ]


def test_the_job_resumes_on_a_new_cluster_and_has_time_to_stop():
    from ray.runtime_env import RuntimeEnv

    spec = resource("RayJob")["spec"]
    assert spec["submissionMode"] == "HTTPMode"
    assert spec["backoffLimit"] > 0
    words = spec["entrypoint"].split()
    assert words[:4] == ["python", "-m", "solon", "train"]
    assert "--name" in words, "only a named run is continued by the next attempt"
    variables = RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))["env_vars"]
    assert variables == {"SOLON_RUNS": "/shared/runs", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


def test_serve_accepts_the_configuration_of_the_service_and_solon_its_arguments():
    from importlib import import_module

    from ray.serve.schema import ServeDeploySchema

    from serve_apps.replica import ARGUMENTS

    config = ServeDeploySchema.model_validate(yaml.safe_load(resource("RayService")["spec"]["serveConfigV2"]))
    (one,) = config.applications
    module, _, name = one.import_path.partition(":")
    assert callable(getattr(import_module(module), name))
    assert set(one.args) <= set(ARGUMENTS)
    (group,) = clusters()["RayService"]["workerGroupSpecs"]
    assert float(one.args["most_replicas"]) <= group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert float(one.args["gpus"]) <= float(limits["nvidia.com/gpu"])
    assert float(one.args["cpus"]) <= float(limits["cpu"])


def test_the_policy_selects_every_pod_and_opens_dns_and_the_ports_that_are_used():
    policy = resource("NetworkPolicy", "solon-pods")["spec"]
    assert policy["podSelector"]["matchLabels"] == LABEL
    assert all(one["metadata"]["labels"] == LABEL for one in templates())
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    opened = [port for rule in policy["egress"] for port in rule.get("ports", [])]
    assert opened == [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    assert all(rule.get("from") for rule in policy["ingress"])  # a rule without it admits everybody
    assert all(rule.get("to") for rule in policy["egress"])
    served = yaml.safe_load(resource("RayService")["spec"]["serveConfigV2"])["http_options"]["port"]
    entries = [port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])]
    assert entries == [8265, served, 8080, 44217, 44227]  # the last three: metrics


def test_only_heads_reach_the_address_of_the_kubernetes_api():
    policy = resource("NetworkPolicy", "solon-autoscaler")["spec"]
    assert policy["podSelector"]["matchLabels"] == {**LABEL, "ray.io/node-type": "head"}
    assert policy["policyTypes"] == ["Egress"]
    for cluster in clusters().values():
        for group in cluster["workerGroupSpecs"]:
            assert group["template"]["spec"]["automountServiceAccountToken"] is False
