"""A model behind vLLM's OpenAI server, in a process of its own, for programs that speak that protocol."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from solon.engines.base import EngineConfig
from solon.engines.checkpoint import is_quantised
from solon.engines.memory import CPU_CACHE_GIB
from solon.engines.server_weights import KEY, MIDDLEWARE, WORKER
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


class ModelServer:
    """vLLM's server of one model. Only this machine can reach it; it ends with this process, however that ends.

        server = ModelServer(config, on_gpu=False, log=folder / "server.log")
        server.launch()
        while not server.is_ready(): ...
        server.end()

    names: what clients may call the model. label: `system_fingerprint` of its answers. key: that
    callers must have; empty: none. A server with a key loads new weights (`server_weights`). log: of the server.
    Raises InputError for settings that the server does not have.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_gpu: bool,
        log: Path,
        names: Sequence[str] = (SERVED_NAME,),
        label: str = "",
        key: str = "",
    ) -> None:
        _check(config)
        self.log = log
        self.address = ""
        self._config, self._on_gpu, self._names, self._label = config, on_gpu, tuple(names), label
        self._key = key
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process and return at once. Raises OSError when the log cannot be written."""
        port = _free_port()
        self.address = f"http://127.0.0.1:{port}"
        command = _command(self._config, port, on_gpu=self._on_gpu, names=self._names, label=self._label)
        # The route needs the key, and a server without one has no such route.
        command += ["--middleware", MIDDLEWARE, "--worker-extension-cls", WORKER] if self._key else []
        with self.log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [*module_command("solon.host.child"), *command],
                env=child_environment(**_variables(self._config), **({KEY: self._key} if self._key else {})),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def is_ready(self) -> bool:
        """Whether it answers. Raises RunFailedError with the end of its log when it has ended."""
        if failure := self.failure():
            raise RunFailedError(failure)
        with (
            suppress(urllib.error.URLError, TimeoutError, ConnectionError),
            _direct.open(f"{self.address}/health", timeout=2) as reply,
        ):
            return bool(reply.status == 200)
        return False

    def failure(self) -> str:
        """How it ended, with the last lines of its log; empty while it runs."""
        assert self._process is not None
        code = self._process.poll()
        return "" if code is None else f"the model's server {failure_of(code, self.log)}"

    def end(self) -> None:
        """End the process, by force if it does not end by itself."""
        if self._process is None:
            return
        assert self._process.stdin
        self._process.stdin.close()  # the child ends its command, and kills it if it does not end
        self._process.wait()


@contextmanager
def served(config: EngineConfig, *, on_gpu: bool, log: Path, timeout_s: float = START_TIMEOUT_S) -> Iterator[str]:
    """The address of a `ModelServer` that runs while the block does.

    Raises RunFailedError with the end of the log when the server does not start, InputError for settings that it does
    not have.
    """
    server = ModelServer(config, on_gpu=on_gpu, log=log)
    deadline = time.monotonic() + timeout_s
    try:
        server.launch()
        while not server.is_ready():
            if time.monotonic() > deadline:
                raise RunFailedError(f"the model's server did not start within {timeout_s:.0f} s; its log is {log}")
            time.sleep(0.5)
        yield server.address
    finally:
        server.end()


def _check(config: EngineConfig) -> None:
    if config.backend != "vllm":
        raise InputError(f"engine.backend is {config.backend!r}, expected 'vllm' to serve a model; leave it out")
    for name in UNKNOWN:
        if getattr(config, name) != EngineConfig.model_fields[name].get_default(call_default_factory=True):
            raise InputError(f"engine.{name} has no effect on a served model, expected it to be left out; remove it")


def _command(config: EngineConfig, port: int, *, on_gpu: bool, names: Sequence[str], label: str) -> list[str]:
    dtype = config.dtype
    if dtype == "auto" and not on_gpu:  # int8 on tiles (AMX) and int4 take 16 bits
        dtype = "bfloat16" if _is_compressed(config) else "float32"
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", config.model]
    command += ["--served-model-name", *names, "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    # One line of log a request would fill a disk.
    command += ["--disable-uvicorn-access-log", "--disable-log-stats"]
    command += ["--fingerprint-mode", "custom", "--fingerprint-value", label] if label else []
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


def _is_compressed(config: EngineConfig) -> bool:
    try:
        return is_quantised(config)
    except InputError:  # vLLM says what is wrong with the model
        return False


def _variables(config: EngineConfig) -> dict[str, str]:
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.kv_cache_gib or CPU_CACHE_GIB))),
        "OMP_NUM_THREADS": str(config.threads),
    }


def without_proxy(variables: dict[str, str]) -> dict[str, str]:
    """Variables with which a program reaches a server on this machine directly."""
    known = variables.get("no_proxy") or variables.get("NO_PROXY") or ""
    direct = ",".join(part for part in (known, "127.0.0.1", "localhost") if part)
    return {**variables, "no_proxy": direct, "NO_PROXY": direct}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
