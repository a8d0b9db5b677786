"""Nodes of a `ray.cluster_utils.Cluster`, and their loss."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psutil


def processes(node: Any) -> list[psutil.Process]:
    """The raylet of a node, and all that it started."""
    (raylet,) = node.all_processes["raylet"]
    first = psutil.Process(raylet.process.pid)
    return [first, *first.children(recursive=True)]


def workers(node: Any, kind: str) -> set[int]:
    """Process ids of the actors of a class on a node."""
    found = set()
    for process in processes(node):
        with suppress(psutil.Error):
            if f"ray::{kind}" in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def lose(cluster: Any, node: Any) -> None:
    """The machine is gone: all of its processes at once."""
    for process in processes(node):
        with suppress(psutil.Error):
            process.kill()
    cluster.remove_node(node, allow_graceful=False)
