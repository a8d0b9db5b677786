"""A run's time to its first step against the imports and engine builds in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._harness import Row

ROOT = Path(__file__).resolve().parents[1]
RUN = """
policy = "{model}"
judge = "{model}"
prompts = "{examples}/assistant_prompts.jsonl"
constitution = "{examples}/assistant.yaml"
steps = 1

[rollout]
group_size = 2
max_tokens = 8
max_model_len = 256
num_cpus = 0.5

[judging]
max_model_len = 1024
num_cpus = 0.5

[feedback]
min_mass = 1e-9
min_valid = 1
principles_per_group = 1

[ledger]
batch_groups = 1

[learn]
num_cpus = 0.5
"""
"""The smallest step: one group of two short answers."""
PARTS = {
    "rollout engine": """
from solon.engines.base import EngineConfig
config = EngineConfig(model=model, max_model_len=256, reloads=True, device="cpu")
from solon.engines.vllm_build import prepare_process
prepare_process(config)
import vllm.v1.engine.llm_engine
imported()
from solon.engines.build import build_engine
build_engine(config, name="rollout-0")
""",
    "judge engine": """
from solon.engines.base import EngineConfig
config = EngineConfig(model=model, max_model_len=1024, device="cpu")
from solon.engines.vllm_build import prepare_process
prepare_process(config)
import vllm.v1.engine.llm_engine
imported()
from solon.engines.build import build_engine
build_engine(config, name="judge-0")
""",
    "learner": """
import learners.build
from transformers import AutoModelForCausalLM
imported()
from learners.config import LearnConfig
learner = learners.build.build_learner(LearnConfig(), model=model, temperature=1.0, seed=0)
learner.initial_weights()
""",
}
TIMER = """
import json, os, sys, time
model, times = sys.argv[1], [time.perf_counter()]
def imported(): times.append(time.perf_counter())
{part}
imported()
print("\\n" + json.dumps([times[1] - times[0], times[2] - times[1]]), flush=True)
os._exit(0)
"""


def start_rows(model: str, *, quick: bool) -> list[Row]:
    """The parts alone, one after the other, each in a new process; then the run, whose workers start together."""
    total, rows = 0.0, []
    for name, part in PARTS.items():
        imports_s, build_s = _part(model, part)
        print(f"{name}: imports {imports_s:.1f} s, build {build_s:.1f} s", flush=True)
        rows.append(Row(f"start: {name}, seconds of its build (reference: of its imports)", build_s, imports_s))
        total += imports_s + build_s
    first_s = min(_run(model) for _ in range(1 if quick else 2))
    return [Row("start: seconds to the first step of a run (reference: sum of the parts)", first_s, total), *rows]


def _part(model: str, part: str) -> tuple[float, float]:
    command = [sys.executable, "-c", TIMER.format(part=part), model]
    found = subprocess.run(command, cwd=ROOT, env=_environment(), check=True, capture_output=True, text=True)
    imports_s, build_s = json.loads(found.stdout.strip().splitlines()[-1])
    return imports_s, build_s


def _run(model: str) -> float:
    """Seconds from the start of the command to the line of the first step."""
    with tempfile.TemporaryDirectory(prefix="lanes-start-") as scratch:
        folder = Path(scratch)
        file = folder / "run.toml"
        file.write_text(RUN.format(model=model, examples=ROOT / "examples"))
        environment = _environment() | {"SOLON_RUNS": str(folder / "runs")}
        metrics = folder / "runs" / "first" / "metrics.jsonl"
        begun = time.perf_counter()
        with (folder / "log").open("w") as log:
            command = [sys.executable, "-m", "solon", "train", str(file), "--name", "first"]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            seconds = 0.0
            while process.poll() is None and not seconds:
                if metrics.is_file() and metrics.stat().st_size:
                    seconds = time.perf_counter() - begun
                time.sleep(0.02)
            code = process.wait()
        if code or not seconds:
            raise RuntimeError((folder / "log").read_text()[-2000:])
    print(f"run: first step after {seconds:.1f} s", flush=True)
    return seconds


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
