"""A model behind vLLM's OpenAI server, in a process of its own, for programs that speak that protocol."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from solon.engines.base import EngineConfig
from solon.engines.memory import CPU_CACHE_GIB
from solon.errors import InputError, RunFailedError
from solon.host.own_code import child_environment, module_command
from solon.host.processes import failure_of

SERVED_NAME = "policy"
"""What clients call the model."""
START_TIMEOUT_S = 900.0
UNKNOWN = ("chat_date", "text_tokens", "thinking")
"""Settings that vLLM's server does not have."""
# The environment may name a proxy, which does not reach this machine's loopback address.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def served(config: EngineConfig, *, on_gpu: bool, log: Path, timeout_s: float = START_TIMEOUT_S) -> Iterator[str]:
    """`http://127.0.0.1:PORT` while the block runs. log: of the server. Only this machine can reach it; it ends with
    this process, however that ends.

    Raises RunFailedError with the end of the log when the server does not start, InputError for settings that it does
    not have.
    """
    _check(config)
    port = _free_port()
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            [*module_command("solon.host.child"), *_command(config, port, on_gpu=on_gpu)],
            env=child_environment(**_variables(config)),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(server, address, log, timeout_s)
        yield address
    finally:
        assert server.stdin
        server.stdin.close()  # the child ends its command, and kills it if it does not end
        server.wait()


def _check(config: EngineConfig) -> None:
    if config.backend != "vllm":
        raise InputError(f"engine.backend is {config.backend!r}, expected 'vllm' to serve a model; leave it out")
    for name in UNKNOWN:
        if getattr(config, name) != EngineConfig.model_fields[name].get_default(call_default_factory=True):
            raise InputError(f"engine.{name} has no effect on a served model, expected it to be left out; remove it")


def _command(config: EngineConfig, port: int, *, on_gpu: bool) -> list[str]:
    dtype = config.dtype if on_gpu or config.dtype != "auto" else "float32"
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", config.model]
    command += ["--served-model-name", SERVED_NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    command += ["--max-model-len", str(config.max_model_len), "--max-num-seqs", str(config.max_running)]
    command += ["--seed", str(config.seed), "--load-format", "safetensors"]
    # The model's own defaults, such as a repetition penalty, would change what a harness asks for.
    command += ["--generation-config", "vllm"]
    command += ["--enforce-eager"] if config.enforce_eager else []
    command += ["--trust-remote-code"] if config.trust_remote_code else []
    command += ["--chat-template", config.chat_template] if config.chat_template else []
    if config.chat_template_args:
        command += ["--default-chat-template-kwargs", json.dumps(config.chat_template_args)]
    if config.max_batched_tokens:
        command += ["--max-num-batched-tokens", str(config.max_batched_tokens)]
    if not on_gpu:
        return command
    if config.kv_cache_gib:
        return [*command, "--kv-cache-memory-bytes", str(int(config.kv_cache_gib * 2**30))]
    return [*command, "--gpu-memory-utilization", str(config.gpu_memory_utilization)]


def _variables(config: EngineConfig) -> dict[str, str]:
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.kv_cache_gib or CPU_CACHE_GIB))),
        "OMP_NUM_THREADS": str(config.threads),
    }


def _wait(server: subprocess.Popen[bytes], address: str, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (code := server.poll()) is not None:
            raise RunFailedError(f"the model's server {failure_of(code, log)}")
        with (
            suppress(urllib.error.URLError, TimeoutError, ConnectionError),
            _direct.open(f"{address}/health", timeout=2) as reply,
        ):
            if reply.status == 200:
                return
        time.sleep(0.5)
    raise RunFailedError(f"the model's server did not start within {timeout_s:.0f} s; its log is {log}")


def without_proxy(variables: dict[str, str]) -> dict[str, str]:
    """Variables with which a program reaches a server on this machine directly."""
    known = variables.get("no_proxy") or variables.get("NO_PROXY") or ""
    direct = ",".join(part for part in (known, "127.0.0.1", "localhost") if part)
    return {**variables, "no_proxy": direct, "NO_PROXY": direct}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
