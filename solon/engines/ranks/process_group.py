"""The process group in which vLLM computes a model on several ranks, and the arguments that tell it so."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from solon.engines.ranks.meeting import EngineRanks

_SHARED = Path("/dev/shm")
NUMBERING = {"VLLM_ALLREDUCE_USE_SYMM_MEM": "0", "VLLM_ALLREDUCE_USE_FLASHINFER": "0"}
"""Variables that switch off vLLM's exchanges that tell devices apart by their numbers: a rank sees one device, so its
number is 0 on every rank. NCCL tells them apart by their bus."""
UNFUSED = {"pass_config": {"fuse_allreduce_rms": False}}
"""The same for the exchange that compilation would fuse into a norm."""


@contextlib.contextmanager
def ranks_of_vllm(ranks: EngineRanks, store: Any, *, on_cpu: bool, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Active while vLLM is built; yields further arguments for it. Every rank builds its own, with one worker in this
    process (`external_launcher`): the executor is never left to vLLM, which would start processes or actors."""
    if ranks.size == 1:
        yield {}
        return
    import torch
    from torch import distributed as dist
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    if not on_cpu:
        torch.cuda.set_device(0)
    # Before vLLM, which takes a group that exists: with its own it would need a free port, and wait half an hour.
    dist.init_process_group(
        "gloo" if on_cpu else "cpu:gloo,cuda:nccl",
        store=store,
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=timedelta(seconds=timeout_s),
    )
    # What follows the colon names the engine's shared memory on a CPU: engines of one machine need different ones.
    box = [f"solon:{secrets.token_hex(8)}"]
    dist.broadcast_object_list(box, 0)
    meeting = box[0]
    own = ExecutorWithExternalLauncher._distributed_args
    # A rank sees one device, the one that it was given: its number there is 0 on every rank.
    ExecutorWithExternalLauncher._distributed_args = lambda executor: (meeting, ranks.rank, 0)
    try:
        yield {
            "tensor_parallel_size": ranks.size,
            "distributed_executor_backend": "external_launcher",
            # Its peer checks number the devices that this process sees, which is only one.
            "disable_custom_all_reduce": True,
            "distributed_timeout_seconds": int(timeout_s) or 1,
        } | ({} if on_cpu else {"compilation_config": UNFUSED})
    finally:
        ExecutorWithExternalLauncher._distributed_args = own
        if on_cpu and ranks.rank == 0:
            _forget_names(meeting.rpartition(":")[2])


def _forget_names(engine: str) -> None:
    """Remove the names of the shared memory, which all ranks have opened by now: a killed process would leave them."""
    for path in _SHARED.glob(f"*{engine}-*cpushm*"):
        with contextlib.suppress(OSError):
            path.unlink()
