"""Starts vLLM inside this process, with few resources and little output.

vLLM is configured partly by environment variables, some read at import and some when the first engine is built.
`prepare_process` sets them before the import, and nothing else in Solon does; importing this module changes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from solon.engines import vllm_cpu_attention
from solon.engines.adapter_names import room_for
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import model_settings
from solon.engines.device import require_visible_gpu, vllm_build
from solon.engines.device_turns import device_key, turn_on_device, wait_for_memory
from solon.engines.memory import BATCHED_TOKENS, CPU_CACHE_GIB
from solon.engines.ranks.meeting import ALONE, EngineRanks
from solon.engines.ranks.process_group import NUMBERING, ranks_of_vllm
from solon.engines.vllm_adapters import layers_alone
from solon.engines.vllm_classes import classes_left_alone
from solon.engines.vllm_cpu_int8 import int8_takes_float32
from solon.engines.vllm_cpu_sampling import one_number_for_a_token
from solon.engines.vllm_memory import gpu_memory_arguments, sizes_of_model
from solon.engines.vllm_room import ATTEST_PLACES
from solon.errors import InputError
from solon.models.sizes import ModelSizes

TURN = threading.RLock()
"""vLLM keeps build and compute state in module variables: the engines of one process take turns."""
_GIB = 1 << 30
_live: set[int] = set()
"""Engines of this process that are not stopped, by identity."""
_rendezvous: list[int] = []
"""Open rendezvous files of the engines of this process."""
_CPU_BLOCK_TOKENS, _AMX_BLOCK_TOKENS = 16, 32
"""Tokens per cache block on a CPU; AMX tiles need at least 32. The backend's default of 128 would keep short prompts
out of the prefix cache."""


def prepare_process(config: EngineConfig) -> None:
    """Sets the environment variables of vLLM and torch. Call it before either is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # no EngineCore subprocess: halves the start-up
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # other engines share the machine
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    if config.tensor_parallel > 1:
        os.environ.update(NUMBERING)
    # Set vLLM's log level to see its log; standard output belongs to Solon's own commands.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR"))


def start_vllm(config: EngineConfig, *, pooling: bool = False, ranks: EngineRanks = ALONE, store: Any = None) -> Any:
    """An `LLMEngine` without a subprocess; the process's other engines wait meanwhile. pooling: it computes the output
    of a model's head in place of text. ranks, store: of an engine of several processes, which all call this.

    Raises vLLM's error when it refuses the model or the settings; `build_engine` turns it into an InputError.
    """
    with TURN:
        return _start(config, {"runner": "pooling"} if pooling else {}, ranks, store)


def _start(config: EngineConfig, further: dict[str, Any], ranks: EngineRanks, store: Any) -> Any:
    import torch

    if vllm_build() == "gpu":
        require_visible_gpu(config.device, f"the engine of {config.model!r}")
        _require_alone(config)
    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    set_num_threads(config.threads)

    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import uniproc_executor

    _register_in_process(config)
    if current_platform.is_cpu():
        register_backend(AttentionBackendEnum.CPU_ATTN, vllm_cpu_attention.BACKEND)
    in_the_temporary_folder = uniproc_executor.get_file_store_init_method
    uniproc_executor.get_file_store_init_method = _meeting_place
    on_cpu = current_platform.is_cpu()
    arguments = _arguments(config, on_cpu=on_cpu) | further
    sizes = None if on_cpu else sizes_of_model(config.model)  # may download the model, so outside the lock
    cpu = _on_cpu(arguments["dtype"]) if on_cpu else contextlib.nullcontext()
    together = ranks_of_vllm(ranks, store, on_cpu=on_cpu, timeout_s=config.rank_timeout_s)
    try:
        adapting = contextlib.nullcontext() if config.adapters is None else layers_alone()
        turn = turn_on_device("" if on_cpu else device_key())
        with turn, warnings.catch_warnings(), classes_left_alone(), cpu, adapting, together as of_ranks:
            arguments |= of_ranks
            warnings.simplefilter("ignore", FutureWarning)  # vLLM inspects deprecated names of torch too
            if not on_cpu:
                arguments |= _gpu_memory(config, sizes)
            llm = LLMEngine.from_engine_args(EngineArgs(**arguments))
        _live.add(id(llm))
        return llm
    finally:
        # The CPU worker turns torch.set_num_threads into a no-op and preloads libraries into every child process;
        # both are limited to this engine.
        torch.set_num_threads = set_num_threads
        uniproc_executor.get_file_store_init_method = in_the_temporary_folder
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload


@contextlib.contextmanager
def _on_cpu(dtype: str) -> Iterator[None]:
    """What Solon changes in vLLM's CPU build while it builds an engine."""
    with int8_takes_float32(dtype), one_number_for_a_token():
        yield


def _require_alone(config: EngineConfig) -> None:
    """Raises InputError for a second engine of this process on a GPU: both would compute in one workspace, a variable
    of vLLM's module that the second replaces while graphs of the first point at it."""
    if _live:
        raise InputError(
            f"the engine of {config.model!r} would be the second one of this process on a GPU, expected one: vLLM has "
            "one workspace for all of them; let the other judges be endpoints, or use the CPU"
        )


def stop_vllm(llm: Any) -> None:
    """Frees the engine; the last one of the process also frees vLLM's process-wide state."""
    with TURN:
        _stop(llm)


def _stop(llm: Any) -> None:
    _live.discard(id(llm))
    client = llm.engine_core
    if not _live:
        client.shutdown()
        while _rendezvous:
            os.close(_rendezvous.pop())
        return
    # vLLM's own shutdown tears down the process groups that live engines compute with.
    client._finalizer.detach()
    client.engine_core.model_executor.shutdown()
    client.engine_core.scheduler.shutdown()
    gc.unfreeze()


def _meeting_place() -> str:
    """Rendezvous address of torch's process group of one process: a private file of this process, in memory.

    vLLM would use a file in the temporary folder, which remains when its process is killed.
    """
    _rendezvous.append(os.memfd_create("solon-rendezvous"))
    return f"file:///proc/self/fd/{_rendezvous[-1]}"


def _register_in_process(config: EngineConfig) -> None:
    """Gives vLLM the model's class. Otherwise it would import itself again in a subprocess to inspect it."""
    from vllm.model_executor.models import ModelRegistry

    for architecture in model_settings(config).get("architectures") or ():
        known = ModelRegistry.models.get(architecture)
        if known is not None:
            ModelRegistry.register_model(architecture, known.load_model_cls())


def _arguments(config: EngineConfig, *, on_cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": config.model,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_running + ATTEST_PLACES,
        "scheduling_policy": "priority",  # sequences that attest new weights are computed in the next step
        "max_num_batched_tokens": max(config.max_batched_tokens or BATCHED_TOKENS, config.max_running + ATTEST_PLACES),
        "seed": config.seed,
        "enforce_eager": config.enforce_eager,
        "trust_remote_code": config.trust_remote_code,
        "load_format": "safetensors",
        "skip_tokenizer_init": True,  # input and output are token ids; Solon handles texts itself
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # log-probs of the sampling distribution
        "distributed_executor_backend": "uni",
        "async_scheduling": False,  # a token belongs to the weights that are live when its step runs
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if (room := config.adapters) is not None:
        arguments |= {"enable_lora": True, "max_loras": room.versions, "max_lora_rank": room_for(room.rank)}
        if room.layers:
            arguments["lora_target_modules"] = list(room.layers)
    if on_cpu:
        arguments["dtype"] = _cpu_dtype(config)
        arguments["block_size"] = _cpu_block_tokens(arguments["dtype"])
        arguments["kv_cache_memory_bytes"] = int((config.kv_cache_gib or CPU_CACHE_GIB) * _GIB)
        # A prompt computed in two pieces makes vLLM rewind the request's random generator, and torch's CPU
        # generator cannot be rewound ("CPU Generator does not use offset").
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(arguments["max_num_batched_tokens"], config.max_model_len)
    return arguments


def _gpu_memory(config: EngineConfig, sizes: ModelSizes | None) -> dict[str, Any]:
    import torch

    total = int(torch.cuda.get_device_properties(0).total_memory)
    arguments, needed = gpu_memory_arguments(config, sizes, total)
    wait_for_memory(needed, lambda: torch.cuda.mem_get_info(0), who=f"the engine of {config.model!r}")
    return arguments


def _cpu_block_tokens(dtype: str) -> int:
    import torch

    return _AMX_BLOCK_TOKENS if dtype == "bfloat16" and torch.cpu._is_amx_tile_supported() else _CPU_BLOCK_TOKENS


def _cpu_dtype(config: EngineConfig) -> str:
    if config.dtype != "auto":
        return config.dtype
    # vLLM's four-bit kernel for CPUs takes no float32.
    found = json.dumps(model_settings(config).get("quantization_config") or {})
    return "bfloat16" if "pack-quantized" in found else "float32"
