"""The present and possible resources of the cluster that this process has joined. Knows Ray.

Ray itself does not say which nodes an autoscaler may start. The sources, in order: the cluster's own configuration,
which hosted clusters report; the file with which the autoscaler on the head node was started; KubeRay's RayCluster.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.state import state as ray_state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2 as protocol
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.fitting import joins_another
from cluster.placement.node_types import extract, group_types, node_types
from cluster.placement.placement import RESOURCES, Node, NodeType, Supply

HEAD = "node:__internal_head__"
"""A resource that only the head node has."""
_MONITOR = "--autoscaling-config="
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_LOOK_S = 60.0
"""The head node may be busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How far a growing cluster has come."""

    nodes: Counter[str]
    """By type."""
    starting: Counter[str]
    """Nodes requested or booting, by type; only Ray's autoscaler v2 reports them."""
    failed: tuple[str, ...]
    """Node types that recently failed to start, and why."""
    pending: tuple[tuple[float, ...], ...]
    """Requests without a node, each in the order of `RESOURCES`."""
    free: tuple[str, ...] = ()
    """What no job holds, as in `0 of 2 CPUs free`."""


def read_supply() -> Supply:
    """Nodes and node types of the cluster."""
    types, at_most = _types()
    kinds = {status.node_id.hex(): status.ray_node_type_name for status in _status().cluster_resource_state.node_states}
    nodes = [
        Node(
            resources=node["Resources"],
            labels=node["Labels"],
            type=kinds.get(node["NodeID"], ""),
            is_head=HEAD in node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return Supply(nodes=nodes, types=types, at_most=at_most)


def read_growth() -> Growth:
    """Nodes that have joined and nodes that are starting."""
    status = _status()
    scaling, resources = status.autoscaling_state, status.cluster_resource_state
    starting: Counter[str] = Counter()
    for request in scaling.pending_instance_requests:
        starting[request.ray_node_type_name] += request.count
    for instance in scaling.pending_instances:
        starting[instance.ray_node_type_name] += 1
    dead = protocol.NodeStatus.DEAD
    return Growth(
        nodes=Counter(node.ray_node_type_name or "node" for node in resources.node_states if node.status != dead),
        starting=starting,
        failed=tuple(f"{failure.ray_node_type_name}: {failure.reason}" for failure in scaling.failed_instance_requests),
        pending=pending_in(resources),
        free=free_of(ray.available_resources(), ray.cluster_resources()),
    )


def free_of(available: Mapping[str, float], there: Mapping[str, float]) -> tuple[str, ...]:
    """What no job holds of each resource that the cluster has, as in `0 of 2 CPUs free`."""
    return tuple(
        f"{available.get(name, 0.0):g} of {there[name]:g} {name}s free" for name in RESOURCES if there.get(name)
    )


def pending_in(state: Any) -> tuple[tuple[float, ...], ...]:
    """Requests without a node in a `ClusterResourceState`; a placement group, as of the ranks of a learner, is one."""
    single = [[asked.request] for asked in state.pending_resource_requests]
    gangs = [
        [one for selector in gang.bundle_selectors for one in selector.resource_requests] or list(gang.requests)
        for gang in state.pending_gang_resource_requests
    ]
    return tuple(
        tuple(sum(float(one.resources_bundle.get(resource, 0.0)) for one in requests) for resource in RESOURCES)
        for requests in (*single, *gangs)
    )


def _status() -> Any:
    reply = protocol.GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status())
    return reply


def _types() -> tuple[tuple[NodeType, ...] | None, float]:
    if not joins_another():
        return (), math.inf
    reported = ray_state.get_cluster_config()
    if reported is not None and reported.node_group_configs:
        return group_types(reported.node_group_configs), math.inf
    kind, config = _look_on_head()
    if kind == "fixed":
        return (), math.inf
    return node_types(config) if kind == "grows" else (None, math.inf)


# -- on the head node ----------------------------------------------------------------------------------------------

Found = tuple[str, dict[str, Any]]
"""("grows", configuration), ("fixed", {}) or ("unknown", {})."""


def _look_on_head() -> Found:
    address = ray.get_runtime_context().gcs_address
    heads = [node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    if not heads or heads[0] == ray.get_runtime_context().get_node_id():
        return find_config(address)
    there = NodeAffinitySchedulingStrategy(heads[0], soft=False)
    look = ray.remote(num_cpus=0, max_retries=0)(find_config).options(scheduling_strategy=there)
    try:
        found: Found = ray.get(look.remote(address), timeout=_LOOK_S)
    except ray.exceptions.RayError:  # such as GetTimeoutError: the run can start without the answer
        return "unknown", {}
    return found


def find_config(gcs_address: str) -> Found:
    """The configuration of the autoscaler that serves this cluster and runs on this node."""
    port = gcs_address.rpartition(":")[2]  # a node has several names
    for arguments in _command_lines():
        serves = any(part.startswith("--gcs-address=") and part.endswith(f":{port}") for part in arguments)
        if serves and any(part.endswith("/monitor.py") for part in arguments):
            paths = [part.removeprefix(_MONITOR) for part in arguments if part.startswith(_MONITOR)]
            return _read(Path(paths[0]).expanduser()) if paths else ("fixed", {})
    return _ask_kubernetes() if "RAY_CLUSTER_NAME" in os.environ else ("unknown", {})


def _command_lines() -> list[Sequence[str]]:
    import psutil  # type: ignore[import-untyped]  # comes with Ray, which puts it on the path

    lines = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if line]


def _read(path: Path) -> Found:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # another user's, or half written
        return "unknown", {}
    return ("grows", extract(config)) if isinstance(config, dict) else ("unknown", {})


def _ask_kubernetes() -> Found:
    """The RayCluster for which KubeRay made this node, as its autoscaler reads it."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        namespace = os.environ.get("RAY_CLUSTER_NAMESPACE") or _SERVICE_ACCOUNT.read_text(encoding="utf-8").strip()
        cluster = KubernetesHttpApiClient(namespace=namespace).get(f"rayclusters/{os.environ['RAY_CLUSTER_NAME']}")
        if not cluster["spec"].get("enableInTreeAutoscaling"):
            return "fixed", {}
        return "grows", extract(_derive_autoscaling_config_from_ray_cr(cluster))
    except Exception:  # no account, no right to read it, another version: the run can start without the answer
        return "unknown", {}
