"""A learner of two ranks against one process: the same mathematics, resuming on another number of ranks, memory, speed.
python benchmarks/ranks.py [--quick] [--only exact,resume,memory,speed,checkpoint] [--model DIR] [--json PATH]

Ranks are processes of one thread on this machine, which exchange gradients by gloo. `--model`: a model directory for
`exact`, beside a random one; without it memory and speed are measured with random weights of SmolLM2's shape (135 M).
Faults of ranks: python -m tests.chaos --engines real --ranks 2
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks._harness import Row, arguments, report
from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.processes import run_on_ranks
from learners.core.ranks import Ranks
from learners.core.sharding import full, local
from learners.memory import learner_memory
from solon.host.allocator import KEEP_FREED_MEMORY, RETURN_FREED_MEMORY
from solon.models.facts import read_facts
from solon.models.sizes import sizes_of
from tests.trainings import OFFLINE, RUNS, apart, train_all
from tests.unit.learner_builders import make_group, random_groups, write_llama

PARTS = ("exact", "resume", "memory", "speed", "checkpoint")
CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in (*RUNS, *OFFLINE)] + [
    (name, {"lora": True}) for name in (*RUNS, "dpo", "kto")
]
STEPS = 4
SHAPE: dict[str, Any] = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2048,
}  # fmt: skip
"""Of SmolLM2-135M."""
SMALL_SHAPE = SHAPE | {"num_hidden_layers": 4, "vocab_size": 4096}


# -- the same mathematics -----------------------------------------------------------------------------------------


def exact_rows(model: str, folder: Path) -> list[Row]:
    """Five steps of every objective on two ranks and in one process."""
    rows = []
    models = {"random Llama": write_llama(folder / "llama")} | ({"given model": model} if model else {})
    for name, path in models.items():
        cases = CASES if name == "random Llama" else [("group_relative", {}), ("dpo", {}), ("ppo", {"lora": True})]
        (alone,), (first, second) = (run_on_ranks(size, train_all, cases, path) for size in (1, 2))
        for (objective, options), one, other, third in zip(cases, alone, first, second, strict=True):
            title = f"{name}, {objective}{', LoRA' if options else ''}"
            losses = max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(one["losses"], other["losses"], strict=True))
            norm = abs(one["norms"][0] - other["norms"][0]) / one["norms"][0]
            rows += [
                Row(f"{title}: losses of five steps, relative", losses, goal="<= 1e-5"),
                Row(f"{title}: norm of the first gradients, relative", norm, goal="<= 1e-5"),
                Row(f"{title}: weights after five steps, worst tensor, relative l2", apart(one, other), goal="<= 1e-5"),
            ]
            assert apart(other, third) == 0, "the ranks published different weights"
    return rows


# -- resuming -----------------------------------------------------------------------------------------------------


def part_of_run(ranks: Ranks, model: str, first: int, last: int, load: str, save: str) -> dict[str, Any]:
    """Steps `first` to `last` of a run, from a checkpoint to a checkpoint; whole weights at the end."""
    config = LearnConfig(learning_rate=1e-3, critic_learning_rate=1e-3, kl_coefficient=0.05)
    learner = build_learner(config, model=model, temperature=1.0, seed=0, ranks=ranks)
    if load:
        learner.load(load)
    groups = []
    for step in range(first, last):
        report = learner.train(step, random_groups(5, 3, seed=step, version=step))
        groups.append([one.ordinal for one in report.groups])
    if save:
        learner.save(save)
    weights = {
        f"{part}/{name}": full(parameter.detach()).clone()
        for part, one in learner.optimizers.items()
        for name, parameter in one.parameters.items()
    }
    return {"weights": weights, "groups": groups}


def resume_rows(folder: Path) -> list[Row]:
    """One step on two ranks, one on one, two on two; against four on two."""
    model = write_llama(folder / "resumed")
    one, two = str(folder / "one"), str(folder / "two")
    (whole, _) = run_on_ranks(2, part_of_run, model, 0, STEPS, "", "")
    (first, _) = run_on_ranks(2, part_of_run, model, 0, 1, "", one)
    (second,) = run_on_ranks(1, part_of_run, model, 1, 2, one, two)
    (third, _) = run_on_ranks(2, part_of_run, model, 2, STEPS, two, "")
    (again, _) = run_on_ranks(2, part_of_run, model, 2, STEPS, two, "")
    groups = first["groups"] + second["groups"] + third["groups"]
    return [
        Row("2 -> 1 -> 2 ranks against 2: weights, worst tensor, relative l2", apart(whole, third), goal="<= 1e-5"),
        Row("the same groups were committed", float(groups == whole["groups"]), goal=">= 1"),
        Row("two resumes on 2 ranks, difference", apart(third, again), goal="<= 0"),
    ]


# -- memory and speed ---------------------------------------------------------------------------------------------


def measured(
    ranks: Ranks, model: str, small: str, tokens: int, threads: int, steps: int, microbatch: int
) -> dict[str, float]:
    """Memory of a PPO learner, bytes, and its speed in trained tokens per second."""
    torch.set_num_threads(threads)
    # What libraries import, and keep after a first step, is not the learner's.
    tiny = build_learner(_config(32, threads), model=small, temperature=1.0, seed=0, ranks=ranks)
    tiny.train(0, random_groups(4, 2))
    del tiny
    gc.collect()
    empty = _resident()
    learner = build_learner(_config(microbatch, threads), model=model, temperature=1.0, seed=0, ranks=ranks)
    objective: Any = learner.objective
    seconds = []
    for step in range(steps):
        groups = [_long_group(n, step, tokens // 8) for n in range(8)]
        began = time.perf_counter()
        learner.train(step, groups)
        seconds.append(time.perf_counter() - began)
    kept = sum(
        local(tensor).numel() * local(tensor).element_size()
        for one in learner.optimizers.values()
        for tensor in one.tensors().values()
    )
    reference = objective.policy._reference
    kept += sum(local(p).numel() * p.element_size() for p in reference.parameters())
    trained = sum(p.numel() for one in learner.optimizers.values() for p in one.parameters.values())
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - empty,
        "resident": _resident() - empty,
        "kept": kept,
        "trained": trained,
        "reference": sum(p.numel() for p in reference.parameters()),
        "tokens": tokens / sorted(seconds[1:] or seconds)[len(seconds[1:] or seconds) // 2],
    }


def _config(microbatch: int, threads: int = 1) -> LearnConfig:
    """PPO with critic and reference."""
    return LearnConfig(
        kl_coefficient=0.05, minibatches=1, max_tokens_per_microbatch=microbatch, gradient_checkpointing=True,
        critic_warmup_steps=0, threads=threads,
    )  # fmt: skip


def _long_group(ordinal: int, step: int, length: int) -> Any:
    generator = torch.Generator().manual_seed(100 * step + ordinal)
    answer = torch.randint(3, 4000, (length - 8,), generator=generator).tolist()
    return make_group(ordinal, list(range(3, 11)), [answer, answer[::-1]], [1.0, -1.0], version=step)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory_rows(folder: Path, *, quick: bool) -> list[Row]:
    """One process of two threads, and two ranks of one thread."""
    model = write_llama(folder / "shape", **(SMALL_SHAPE if quick else SHAPE))
    small = write_llama(folder / "small")
    tokens, steps = (256, 2) if quick else (512, 2)
    found = _on_one_and_two(model, small, tokens, steps, tokens // 2)
    (alone,), ranks = found[1], found[2]
    weights = 12 * alone["trained"] + 4 * alone["reference"]
    print(json.dumps({"alone": alone, "ranks": ranks}), flush=True)
    sizes = sizes_of(read_facts(Path(model)))
    assert sizes is not None
    expected = [
        learner_memory(sizes, _config(tokens // 2), on_gpu=False, longest=tokens // 8, runtime=0, ranks=size).total
        for size in (1, 2)
    ]
    return [
        Row("weights and moments, bytes, 1 rank (reference: 12 bytes trained, 4 frozen)", alone["kept"], weights),
        Row("the same of one of 2 ranks over that of 1", ranks[0]["kept"] / alone["kept"], goal="<= 0.6"),
        Row("resident after the steps, without libraries, 2 ranks over 1", ranks[0]["resident"] / alone["resident"]),
        *(
            row
            for title, found, estimate in (
                ("1 rank", alone["peak"], expected[0]),
                ("the first of 2", ranks[0]["peak"], expected[1]),
                ("the second of 2", ranks[1]["peak"], expected[1]),
            )
            for row in (
                Row(f"peak without libraries, bytes (reference: estimated), {title}", found, estimate),
                Row(f"distance from the estimate, {title}", abs(found / estimate - 1), goal="<= 0.1"),
            )
        ),
    ]


def speed_rows(folder: Path, *, quick: bool) -> list[Row]:
    """Trained tokens per second. A rank gathers each layer once a pass, whatever the number of tokens, so the figure
    depends on the tokens of a microbatch and hardly on the model: a fifth of SmolLM2's layers, at its width."""
    model = write_llama(folder / "fast", **(SMALL_SHAPE if quick else SHAPE | {"num_hidden_layers": 6}))
    small = write_llama(folder / "slow")
    rows = []
    for microbatch in (128,) if quick else (512, 2048, 4096):
        found = _on_one_and_two(model, small, 256 if quick else max(1024, min(4096, 2 * microbatch)), 2, microbatch)
        speed = found[2][0]["tokens"] / found[1][0]["tokens"]
        title = f"tokens a second, 2 ranks of one thread over one process of two, microbatches of {microbatch}"
        rows.append(Row(title, speed, goal=">= 0.9" if microbatch == 4096 else ""))
    return rows


def _on_one_and_two(
    model: str, small: str, tokens: int, steps: int, microbatch: int
) -> dict[int, list[dict[str, float]]]:
    found = {}
    for size, threads, tunables in ((1, 2, KEEP_FREED_MEMORY), (2, 1, RETURN_FREED_MEMORY)):
        os.environ["GLIBC_TUNABLES"] = tunables  # as a run sets it for its learner
        found[size] = run_on_ranks(size, measured, model, small, tokens, threads, steps, microbatch)
    return found


# -- checkpoints ----------------------------------------------------------------------------------------------------


def saved(ranks: Ranks, model: str, tokens: int, folder: str) -> dict[str, float]:
    """Seconds for which a checkpoint holds up steps, written at once and beside them; whether a run that resumes from
    the second equals the undisturbed one. Digests, flushes and the rename are included, as in a run."""
    from learners.core.staging import Staging
    from solon.checkpoints.folder import CheckpointFolder
    from solon.ledger.snapshot import LedgerSnapshot

    torch.set_num_threads(1)
    config = LearnConfig(kl_coefficient=0.05, minibatches=1, max_tokens_per_microbatch=tokens // 2, threads=1)
    place = CheckpointFolder(Path(folder))

    def begun() -> Any:
        return build_learner(config, model=model, temperature=1.0, seed=0, ranks=ranks)

    def step(one: Any, number: int) -> float:
        began = time.perf_counter()
        one.step(number, [_long_group(n, number, tokens // 8) for n in range(8)])
        return time.perf_counter() - began

    def finish(number: int) -> Path:
        ledger = LedgerSnapshot(admitted=0, committed=0, dropped={}, entries=())
        scratch = Path(folder) / f".step-{number:06d}.tmp"
        return place.finish(scratch, step=number, config_hash="", ledger=ledger, held=(), run={})

    def scratch(number: int) -> Path:
        found = Path(folder) / f".step-{number:06d}.tmp"
        found.mkdir(parents=True, exist_ok=True)
        return found

    learner, waited = begun(), [0.0]
    wait = Staging.wait

    def timed(self: Any) -> None:
        began = time.perf_counter()
        wait(self)
        if threading.current_thread() is threading.main_thread():
            waited[0] += time.perf_counter() - began

    step(learner, 0)
    began = time.perf_counter()
    learner.save(scratch(1))
    ranks.total([0.0])
    if ranks.is_first:
        finish(1)
    ranks.total([0.0])
    synchronous = time.perf_counter() - began
    plain = step(learner, 1)
    Staging.wait = timed  # type: ignore[method-assign]
    began = time.perf_counter()
    learner.stage()
    staged = time.perf_counter() - began
    target = scratch(2)
    writing = threading.Thread(target=learner.write, args=(target,))
    writing.start()
    beside = step(learner, 2)
    writing.join()
    ranks.total([0.0])
    if ranks.is_first:
        finish(2)
    ranks.total([0.0])
    resumed = begun()
    resumed.load(Path(folder) / "step-000002")
    step(resumed, 2)
    apart_by = max(
        float((local(one.detach()) - local(other.detach())).abs().max()) if local(one).numel() else 0.0
        for part, optimizer in learner.optimizers.items()
        for one, other in zip(optimizer.parameters.values(), resumed.optimizers[part].parameters.values(), strict=True)
    )
    return {
        "synchronous_s": synchronous, "stage_s": staged, "waited_s": waited[0], "step_s": plain,
        "step_beside_s": beside, "apart": apart_by,
    }  # fmt: skip


def checkpoint_rows(folder: Path, *, quick: bool) -> list[Row]:
    """Checkpoints of one process and of two ranks."""
    (folder / "weights").mkdir()
    model = write_llama(folder / "weights", **(SMALL_SHAPE if quick else SHAPE))
    rows = []
    for size in (1, 2):
        os.environ["GLIBC_TUNABLES"] = KEEP_FREED_MEMORY if size == 1 else RETURN_FREED_MEMORY
        found = run_on_ranks(size, saved, model, 256 if quick else 1024, str(folder / f"saved-{size}"))
        print(json.dumps(found), flush=True)
        worst = {key: max(one[key] for one in found) for key in found[0]}
        held = worst["stage_s"] + worst["waited_s"]
        name = f"{size} rank{'s' if size > 1 else ''}"
        rows += [
            Row(f"steps held up, asynchronous over synchronous, {name}", held / worst["synchronous_s"], goal="<= 0.05"),
            Row(f"a step beside the writing over one without, {name}", worst["step_beside_s"] / worst["step_s"]),
            Row(f"weights of a resumed run against the undisturbed one, {name}", worst["apart"], goal="<= 0"),
        ]
    return rows


def main() -> None:
    """Print the rows."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--model", default="")
    options = parser.parse_args()
    parts, rows = options.only.split(","), list[Row]()
    with tempfile.TemporaryDirectory(prefix="solon-") as name:
        folder = Path(name)
        if "exact" in parts:
            rows += exact_rows(options.model, folder)
        if "resume" in parts:
            rows += resume_rows(folder)
        if "memory" in parts:
            rows += memory_rows(folder, quick=options.quick)
        if "speed" in parts:
            rows += speed_rows(folder, quick=options.quick)
        if "checkpoint" in parts:
            rows += checkpoint_rows(folder, quick=options.quick)
        report("ranks", rows, options.json)


if __name__ == "__main__":
    main()
