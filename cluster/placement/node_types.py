"""The nodes that an autoscaler may start, read from its configuration. Pure: no Ray, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cluster.placement.placement import NodeType

LEAST = ("available_node_types", "head_node_type", "max_workers")
"""Keys of a configuration that describe node types; the others are not copied, as some hold secrets."""
_DEFAULT_MAX_WORKERS = 2
"""Default of Ray's launcher, for a cluster that sets none."""


def extract(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that `node_types` reads."""
    types = config.get("available_node_types")
    found: dict[str, Any] = {key: config[key] for key in LEAST[1:] if key in config}
    kinds = types.items() if isinstance(types, Mapping) else ()
    wanted = ("resources", "labels", "max_workers")
    found[LEAST[0]] = {
        name: {key: kind[key] for key in wanted if key in kind} for name, kind in kinds if isinstance(kind, Mapping)
    }
    return found


def node_types(config: Mapping[str, Any]) -> tuple[tuple[NodeType, ...] | None, float]:
    """(node types, maximum of nodes beside the head). None: the resources of some nodes are not written down, as with
    on-premises machines or instance types that Ray looks up."""
    at_most = config.get("max_workers")
    most = float(_DEFAULT_MAX_WORKERS if at_most is None else at_most)
    found, head = [], config.get("head_node_type")
    for name, kind in config.get("available_node_types", {}).items():
        limit = kind.get("max_workers")
        count = float(limit if limit is not None else 0 if name == head else most)
        if count <= 0:
            continue
        resources = kind.get("resources") or {}
        if not resources:
            return None, most
        amounts = {key: float(value) for key, value in resources.items() if key in ("CPU", "GPU")}
        found.append(NodeType(name=name, resources=amounts, labels=dict(kind.get("labels") or {}), at_most=count))
    return tuple(found), most


def group_types(groups: Any) -> tuple[NodeType, ...]:
    """Node types from `node_group_configs` of a `ClusterConfig`, which a hosted cluster reports. It has no labels; a
    count of -1 means no limit."""
    return tuple(
        NodeType(
            name=group.name,
            resources={key: float(group.resources[key]) for key in ("CPU", "GPU") if key in group.resources},
            labels=None,
            at_most=math.inf if group.max_count < 0 else float(group.max_count),
        )
        for group in groups
        if group.max_count
    )
