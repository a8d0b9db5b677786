"""Behaviour of processes that share a CUDA device; only such a device can show it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
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
LEARNER = """
import sys
from actors.learner import LearnerShell
from learners.config import LearnConfig
from solon.records import Sampling
from tests.unit.learner_builders import random_groups
config = LearnConfig(kl_coefficient=0.05, advantages="group", device="cuda")
shell = LearnerShell(config, model=sys.argv[1], sampling=Sampling(max_tokens=8), seed=0, name=sys.argv[2])
*_, manifest = shell.start("")
print(len(manifest.leaves), flush=True)
sys.stdin.readline()
for step in range(3):
    shell._learner.train(step, random_groups(8, 2, seed=step, version=step))
print("trained", flush=True)
sys.stdin.readline()
"""


@contextmanager
def running(script: str, model: str, name: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, model, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_two_engines_and_a_learner_start_together_and_a_killed_engine_is_replaced_while_it_trains(tmp_path: Path):
    model = write_llama(tmp_path / "model", hidden_size=128, num_attention_heads=4, vocab_size=32)
    with (
        running(ENGINE, model, "rollout-0") as first,
        running(ENGINE, model, "rollout-1") as second,
        running(LEARNER, model, "learner") as learner,
    ):
        checksum = told(first)
        assert len(checksum) == 65
        assert told(second) == checksum
        assert int(told(learner)) > 10
        first.kill()
        go_on(learner)
        with running(ENGINE, model, "rollout-0") as replaced:
            assert told(replaced) == checksum
        assert told(learner) == "trained\n"
        assert second.poll() is None


def test_a_digest_on_the_device_is_that_of_the_host_and_takes_no_copy():
    for shape, dtype in (((4096, 8192), torch.bfloat16), ((300, 20), torch.float32), ((1 << 22,), torch.float32)):
        on_host = torch.randn(shape).to(dtype)
        on_device = on_host.cuda()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        assert digest_tensors([("w", on_device)]) == digest_tensors([("w", on_host)])
        taken = torch.cuda.max_memory_allocated() - before
        assert taken <= max(0.2 * on_device.nbytes, 1 << 20)
