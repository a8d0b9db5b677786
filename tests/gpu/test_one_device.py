"""Behaviour of processes that share a CUDA device; only such a device can show it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from solon.engines.digest import digest_tensors
from tests.unit.learner_builders import write_llama

ENGINE = """
import sys
from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
config = EngineConfig(model=sys.argv[1], device="gpu", shares_device=True, reloads=True, kv_cache_gib=0.5,
                      max_model_len=64, max_running=8, max_batched_tokens=256)
engine = build_engine(config, name=sys.argv[2])
print(engine.checksum(), flush=True)
sys.stdin.readline()
engine.close()
"""


def test_engines_that_share_a_device_start_together(tmp_path: Path):
    model = write_llama(tmp_path / "model", hidden_size=128, num_attention_heads=4, vocab_size=32)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENGINE, model, f"rollout-{index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        told = [process.stdout.readline() for process in processes if process.stdout is not None]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(told[0]) == 65
    assert told[0] == told[1]


def test_a_digest_on_the_device_is_that_of_the_host_and_takes_no_copy():
    for shape, dtype in (((4096, 8192), torch.bfloat16), ((300, 20), torch.float32), ((1 << 22,), torch.float32)):
        on_host = torch.randn(shape).to(dtype)
        on_device = on_host.cuda()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        assert digest_tensors([("w", on_device)]) == digest_tensors([("w", on_host)])
        taken = torch.cuda.max_memory_allocated() - before
        assert taken <= max(0.2 * on_device.nbytes, 1 << 20)
