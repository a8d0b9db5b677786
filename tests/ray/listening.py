"""One of Solon's own clusters inspects itself: `python -m tests.ray.listening` prints, as JSON, on which ports its
processes listen, and how each answers a client without a token."""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from contextlib import suppress
from typing import Any

import grpc
import psutil
import ray

from cluster.ray_session.session import cluster

METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
)
"""One of each service of Ray."""
PAGES = ("/metrics", "/api/version", "/api/local_raylet_healthz", "/get_or_create_runtime_env")
SETTLED_S = 60


@ray.remote(num_cpus=0)
class Worker:
    """An actor like those of a run."""

    def folder(self) -> str:
        return tempfile.gettempdir()


def listening() -> list[dict[str, Any]]:
    """Address, port and process of every socket of this process and its children that accepts connections."""
    found = []
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):
            name = "driver" if process == here else _name(process)
            found += [
                {"process": name, "address": c.laddr.ip.removeprefix("::ffff:"), "port": c.laddr.port}
                for c in process.net_connections(kind="inet")
                if c.status == psutil.CONN_LISTEN
            ]
    return found


def _name(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    for name in ("gcs_server", "monitor.py", "dashboard.py", "DashboardAgent", "RuntimeEnvAgent", "raylet/raylet"):
        if name in command:
            return name
    return "worker" if command.startswith("ray::") else command


def ask_http(port: int) -> dict[str, int]:
    """Status of each page, except for 404."""
    found = {}
    for page in PAGES:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST" if page.startswith("/get_or") else "GET", page)
            found[page] = connection.getresponse().status
        connection.close()
    return {page: status for page, status in found.items() if status not in (404, 405)}


def ask_grpc(port: int) -> list[str]:
    """The answers of Ray's services, without those that are absent here."""
    found = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.enable_http_proxy", 0),)) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=5)
                found.append(f"{method}: answers")
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    found.append(f"{method}: {error.code().name}")
    return found


def main() -> None:
    with cluster() as info:
        worker = Worker.remote()
        scratch = ray.get(worker.folder.remote())
        deadline = time.monotonic() + SETTLED_S
        while {"DashboardAgent", "RuntimeEnvAgent", "monitor.py"} - {one["process"] for one in listening()}:
            assert time.monotonic() < deadline, listening()
            time.sleep(0.5)
        time.sleep(2)
        ports = listening()
        for one in ports:
            one["http"] = ask_http(one["port"])
            if not one["http"]:
                one["grpc"] = ask_grpc(one["port"])
        print(json.dumps({"files": info.files, "notes": info.notes, "scratch": scratch, "ports": ports}))


if __name__ == "__main__":
    main()
