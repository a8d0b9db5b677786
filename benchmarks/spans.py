"""Memory of the learner against vocabulary and against length of a row.

    python benchmarks/spans.py [--quick] [--json PATH]

Peak memory beside inputs and weights, and time, forward and backward, in float32; each measurement is a process.

- Log-probs with entropy of 8,192 tokens over a vocabulary of 150,000, in chunks and from whole logits, on a policy of
  width 64. The whole ones are large: a smaller number of tokens is compared side by side.
- Rows of one prompt, half of the row, with four answers, by segments and under a dense mask, on a policy of four layers
  with eight heads of 32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report

MIB = 2**20
WIDTH = 64


def resident() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) << 10


class Peak:
    """The most memory of this process while it runs, less that at the start: bytes."""

    def __enter__(self) -> Peak:
        self._start = self._most = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._clock = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._most = max(self._most, resident())

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._clock
        self._stop.set()
        self._thread.join()
        self.bytes = self._most - self._start


def policy_of(folder: str, vocabulary: int, length: int, **changes: Any) -> Any:
    """A random Llama as the learner holds it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from learners.config import LearnConfig
    from learners.core.policy import Policy

    torch.set_num_threads(2)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": vocabulary, "max_position_embeddings": length,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(sizes | changes))).save_pretrained(folder)
    return Policy(LearnConfig(), model=folder, temperature=0.7)


def logprobs(tokens: int, vocabulary: int, whole: bool) -> dict[str, float]:
    """Peak bytes and seconds of log-probs with entropy, and of their gradients."""
    import torch
    from torch import Tensor

    from learners.core.packing import Microbatch

    rows = max(1, tokens // 256)
    with tempfile.TemporaryDirectory() as folder:
        policy = policy_of(folder, vocabulary, tokens)
    if whole:
        policy.head = None

    def microbatch(rows: int) -> Microbatch:
        input_BT = torch.randint(3, vocabulary, (rows, tokens // rows))
        index_M: Tensor = torch.arange(input_BT.numel())
        return Microbatch(
            input_BT=input_BT, position_BT=None, mask_B1TT=None, predict_M=index_M, index_M=index_M,
            target_M=input_BT.flatten().roll(-1), place_M=index_M, used=len(index_M),
        )  # fmt: skip

    def run(rows: int) -> None:
        found = policy.score(microbatch(rows), entropy=True)
        (found.logprobs_M.sum() - 0.01 * found.entropy_M.sum()).backward()

    for parameter in policy.model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # an optimiser step has them in any case
    with Peak() as peak:
        run(rows)
    return {"bytes": peak.bytes, "seconds": peak.seconds}


def lengths(length: int, dense: bool) -> dict[str, float]:
    """Peak bytes and seconds of a row with a prompt and four answers, and the sum of its gradients' squares."""
    import dataclasses

    import numpy as np

    from learners.core.batch import Batch
    from tests.unit.learner_builders import make_group

    with tempfile.TemporaryDirectory() as folder:
        policy = policy_of(
            folder, 512, length, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=2,
        )  # fmt: skip
    layout = dataclasses.replace(policy.layout, max_tokens=length)
    assert layout.segments
    layout = dataclasses.replace(layout, dense=length if dense else 0)
    rng = np.random.default_rng(0)
    prompt, *answers = (rng.integers(3, 512, size).tolist() for size in (length // 2, *[length // 8] * 4))
    batch = Batch.of([make_group(0, prompt, answers, [0.0, 1.0, 2.0, 3.0])])
    with Peak() as peak:
        policy.logprobs(layout.in_one(batch, range(4), policy.device)).mean().backward()
    norm = sum(float(p.grad.square().sum()) for p in policy.model.parameters() if p.grad is not None)
    return {"bytes": peak.bytes, "seconds": peak.seconds, "gradient": norm**0.5}


def measure(what: str, *options: object) -> dict[str, float]:
    """`what(*options)` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps([what, *options])],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(what, *options, found, flush=True)
    return found


def of_logprobs(quick: bool) -> list[Row]:
    tokens, vocabulary = (512, 150_000) if quick else (8192, 150_000)
    one = 4 * tokens * vocabulary
    chunks = measure("logprobs", tokens, vocabulary, False)
    rows = [
        Row(
            f"log-probs of {tokens:,} tokens of {vocabulary:,}, forward and backward: extra peak, MiB "
            "(reference: one tensor of logits)", chunks["bytes"] / MIB, one / MIB,
        ),
        Row("the same, over one tensor of logits", chunks["bytes"] / one, goal="" if quick else "<= 0.125"),
        Row("the same, seconds", chunks["seconds"]),
    ]  # fmt: skip
    few = tokens // 8
    ours, theirs = (measure("logprobs", few, vocabulary, whole) for whole in (False, True))
    return [
        *rows,
        Row(f"{few:,} tokens: extra peak, MiB (reference: whole logits)", ours["bytes"] / MIB, theirs["bytes"] / MIB),
        Row(f"{few:,} tokens: seconds (reference: whole logits)", ours["seconds"], theirs["seconds"]),
    ]


def of_lengths(quick: bool) -> list[Row]:
    rows = []
    for length in (1024,) if quick else (1024, 2048, 4096, 8192):
        ours, theirs = (measure("lengths", length, dense) for dense in (False, True))
        of = f"a shared row of {length:,} tokens"
        rows += [
            Row(f"{of}: seconds (reference: dense mask)", ours["seconds"], theirs["seconds"]),
            Row(f"{of}: extra peak, MiB (reference: dense mask)", ours["bytes"] / MIB, theirs["bytes"] / MIB),
            Row(f"{of}: norm of the gradient (reference: dense mask)", ours["gradient"], theirs["gradient"]),
        ]
    return rows


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=["vocabulary", "length"], help="one half")
    parser.add_argument("--measure", help="one measurement, in this process")
    options = parser.parse_args()
    if options.measure:
        what, *given = json.loads(options.measure)
        print(json.dumps(globals()[what](*given)))
        return
    rows = of_lengths(options.quick) if options.only != "vocabulary" else []
    rows += of_logprobs(options.quick) if options.only != "length" else []
    report("spans", rows, options.json)


if __name__ == "__main__":
    main()
