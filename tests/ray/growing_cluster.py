"""A head that starts nodes on demand: Ray's autoscaler over processes of this machine.

Ray's own `AutoscalingCluster` does not suit a shared machine: it begins and ends with `ray stop --force`, which kills
every cluster of the host. Here every process is ended by its id.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.cluster_of_our_own import RAY, ROOT, WORKER_PORTS, _end, _free_ports, _wait_for

HEAD_ID = "f" * 51 + "00000"
"""Of the fake provider, as is the name of the head's type; its nodes count on from there."""
HEAD_TYPE = "ray.head.default"
STARTS = 3


@contextmanager
def growing_cluster(node_types: Mapping[str, Mapping[str, Any]], *, max_workers: int = 4) -> Iterator[dict[str, str]]:
    """The environment in which a driver finds a head without CPUs, and without any other node.

    node_types: `available_node_types` of Ray's launcher, without the head's.
    """
    with tempfile.TemporaryDirectory(prefix="g", dir="/tmp", ignore_cleanup_errors=True) as folder:
        child, port = _started(Path(folder), node_types, max_workers=max_workers)
        try:
            yield {
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_ADDRESS": f"127.0.0.1:{port}",
                "SOLON_ALLOW_OPEN_CLUSTER": "1",
            }
        finally:
            _end(child)


def _started(
    folder: Path, node_types: Mapping[str, Mapping[str, Any]], *, max_workers: int
) -> tuple[subprocess.Popen[bytes], int]:
    """The head's process and its port. On a busy machine Ray gives up after 30 seconds: it is started again, at most
    twice."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",  # the head's output is waited for
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` does
        "AUTOSCALER_UPDATE_INTERVAL_S": "3",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    }
    environment.pop("RAY_ADDRESS", None)
    for attempt in range(STARTS):
        gcs, client, metrics, agent = _free_ports(4)
        file, log = folder / f"autoscaling-{attempt}.json", folder / f"head-{attempt}.log"
        file.write_text(json.dumps(_config(node_types, max_workers=max_workers, gcs=gcs)))
        with log.open("w") as out:
            child = subprocess.Popen(
                [RAY, "start", "--head", "--block", "--num-cpus=0", "--include-dashboard=false",
                 "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}",
                 f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}",
                 f"--temp-dir={folder}/t{attempt}", *WORKER_PORTS, "--object-store-memory=134217728",
                 f"--autoscaling-config={file}"],
                env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        try:
            _wait_for(log, child)
        except RuntimeError:
            _end(child)
            if attempt + 1 == STARTS:
                raise
        else:
            return child, gcs
    raise AssertionError("STARTS is at least 1")


def _config(node_types: Mapping[str, Mapping[str, Any]], *, max_workers: int, gcs: int) -> dict[str, Any]:
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    head = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    kinds = {name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in node_types.items()}
    return {
        "cluster_name": "growing",
        "max_workers": max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            # As one of Ray's own kinds it would be merged with a file that the wheel does not contain.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": f"127.0.0.1:{gcs}",
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {HEAD_TYPE: head, **kinds},
        **{f"{name}_commands": [] for name in lists},
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
    }
