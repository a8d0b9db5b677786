"""Solon against TRL's `GRPOTrainer` on the same work: speed, processor time, memory, and what is learned.

    python benchmarks/against_trl.py [--quick] [--json PATH] [--policy nursery|english|DIRECTORY] [--rounds N]
                                     [--steps N] [--seconds S] [--trl-python PATH] [--results DIRECTORY]

Both sides train the run file of the policy (`examples/nursery.toml`, `examples/english.toml`): the same prompts in the
same order, group size, lengths, learning rate and optimiser, group-relative advantages, no KL, one optimiser step a
batch, and the same judge as reward, by the same classes. Each side is a process of its own, on the same two cores, and
begins again in every round; Solon runs first, so that TRL can save its policy after the same time. TRL computes in the
type of Solon's learner (bfloat16 by its own `bf16` setting) and keeps freed memory as that does. Figures are medians
over rounds. Start-up is excluded from all figures but its own. Held-out answers are scored by programs that never
rewarded the policy.

With `--seconds` both sides train for that time, at most `--steps` steps. `--results` keeps every round in a folder;
rounds that are there already count too, so that long comparisons can be measured round by round (`--seed`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from benchmarks._peer_work import SAME_WORK, Course, load, run_file, settings_here
from benchmarks._process_tree import TreeMeter
from solon.host.allocator import KEEP_FREED_MEMORY

ROOT = Path(__file__).resolve().parents[1]
CORES = 2
GOALS = {"nursery": ">= 3", "english": ">= 1.5"}
MIB = 2**20

Measured = dict[str, Any]
"""What a side took in one round: the fields of `measured`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The comparison that the command line describes."""

    policy: str
    run: Path
    steps: int
    seconds: float
    rollouts: int
    """Of one step."""
    evaluator: str
    options: argparse.Namespace

    def overrides(self, seed: int) -> list[str]:
        """Of the run file, for every side of a round."""
        return [f"steps={self.steps}", f"seed={seed}", *settings_here(self.policy), *self.options.set]


def run_side(
    command: Sequence[str], out: Path, *, threads: int | None, keeps_memory: bool
) -> tuple[Course, TreeMeter, float]:
    """Run a side to its end; returns its course, the measurements of its processes, and when it was started.

    threads: OMP_NUM_THREADS; None: not set. keeps_memory: it keeps freed memory, as Solon's learner does by itself,
    whatever the caller's own environment says. Raises SystemExit with the end of its output when it fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name, value in (
        ("OMP_NUM_THREADS", str(threads) if threads is not None else ""),
        ("GLIBC_TUNABLES", KEEP_FREED_MEMORY if keeps_memory else ""),
    ):
        environment.pop(name, None)
        environment |= {name: value} if value else {}
    log, started_s = out / "output.log", time.time()
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        cores = sorted(os.sched_getaffinity(0))[:CORES]
        os.sched_setaffinity(process.pid, cores)  # before it starts others, which inherit it
        with TreeMeter(process.pid) as meter:
            code = process.wait()
    if code or not (out / "course.json").exists():
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-3000:]}")
    return Course.read(out / "course.json"), meter, started_s


def measured(course: Course, meter: TreeMeter, started_s: float, *, rollouts: int) -> Measured:
    """The figures of a side. rollouts: of one step."""
    trained, end_s = len(course.steps_s) * rollouts, course.steps_s[-1]
    return {
        "rollouts_per_s": trained / course.trained_s,
        "step_s": course.trained_s / len(course.steps_s),
        "cpu_s_per_rollout": course.cpu_s(meter.cpu_s) / trained,
        "peak_mib": meter.peak_bytes(course.began_s, end_s) / MIB,
        "startup_s": course.began_s - started_s,
        "steps": len(course.steps_s),
        "trained_s": course.trained_s,
        "rewards": course.rewards,
        "notes": course.notes,
        "cores": {
            name: seconds / course.trained_s
            for name, seconds in meter.by_process(course.began_s, end_s).items()
            if seconds > 0.01 * course.trained_s
        },
    }


def solon_command(plan: Plan, overrides: Sequence[str], out: Path) -> list[str]:
    command = [sys.executable, "benchmarks/_solon_side.py", "--run", str(plan.run), "--out", str(out)]
    return [*command, "--seconds", str(plan.seconds), *_set(overrides)]


def trl_command(plan: Plan, overrides: Sequence[str], out: Path, *, snapshot_s: float) -> list[str]:
    options = plan.options
    command = [options.trl_python, "benchmarks/_trl_side.py", "--run", str(plan.run), "--out", str(out)]
    command += ["--generation", options.trl_generation, "--micro-batch", str(options.trl_micro_batch)]
    command += ["--threads", str(options.trl_threads), "--judge-threads", str(options.trl_judge_threads)]
    in_bf16 = "learn.dtype=bfloat16" in overrides if options.trl_bf16 is None else options.trl_bf16
    command += ["--bf16"] if in_bf16 else []
    return [*command, "--seconds", str(plan.seconds), "--snapshot", str(snapshot_s), *_set(overrides)]


def _set(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def measure_round(plan: Plan, seed: int, folder: Path) -> dict[str, Measured]:
    """All sides once, and the scores of their policies."""
    common, found = plan.overrides(seed), dict[str, Measured]()
    courses: dict[str, Course] = {}

    def take(name: str, command: list[str], threads: int | None = None) -> None:
        course, meter, started_s = run_side(command, folder / name, threads=threads, keeps_memory=name == "trl")
        courses[name], found[name] = course, measured(course, meter, started_s, rollouts=plan.rollouts)
        figures = ", ".join(f"{key} {value:.4g}" for key, value in found[name].items() if isinstance(value, float))
        cores = ", ".join(f"{process} {share:.2f}" for process, share in found[name]["cores"].items())
        print(f"seed {seed}, {name}: {figures}; {'; '.join(course.notes)}; cores: {cores}", flush=True)

    take("solon", solon_command(plan, [*common, *SAME_WORK], folder / "solon"))
    time_s = plan.seconds or courses["solon"].trained_s
    trl = trl_command(plan, [*common, *SAME_WORK], folder / "trl", snapshot_s=0.0 if plan.seconds else time_s)
    take("trl", trl, plan.options.trl_threads)
    if plan.policy == "nursery" and not plan.options.no_ppo:
        take("ppo", solon_command(plan, common, folder / "ppo"))
    if plan.evaluator:
        shared_s = min(course.trained_s for name, course in courses.items() if name != "ppo")
        wanted = _policies(courses, shared_s=plan.seconds or shared_s)
        scores = _scores(plan, common, folder, sorted(set(wanted.values())))
        for (name, when), policy in wanted.items():
            found[name][f"adherence_{when}"] = scores[policy]["mean"]
        print(", ".join(f"{name} {found[name]['adherence_final']:.3f}" for name in found), "held out", flush=True)
    return found


def _policies(courses: Mapping[str, Course], *, shared_s: float) -> dict[tuple[str, str], str]:
    """Directories of the policies at the end and after `shared_s` seconds of training, by side and moment."""
    wanted = {(name, "final"): course.policies["final"] for name, course in courses.items()}
    wanted |= {(name, "equal_time"): course.policy_at(shared_s) for name, course in courses.items() if name != "ppo"}
    return {key: policy for key, policy in wanted.items() if policy}


def _scores(plan: Plan, overrides: Sequence[str], folder: Path, policies: Sequence[str]) -> dict[str, dict[str, float]]:
    out = folder / "scores.json"
    command = [sys.executable, "benchmarks/_peer_evaluation.py", "--run", str(plan.run), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(CORES)}
    with (folder / "scores.log").open("w") as log:
        subprocess.run(
            [*command, *_set(overrides), *policies], cwd=ROOT, env=environment, check=True, stdout=log, stderr=log
        )
    found: dict[str, dict[str, float]] = json.loads(out.read_text())
    return found


def rows(rounds: Sequence[Mapping[str, Measured]], *, title: str, goal: str = "", seconds: float = 0.0) -> list[Row]:
    """Medians over rounds; ratios are medians of the rounds' own ratios."""

    def median(side: str, key: str) -> float:
        return statistics.median(one[side][key] for one in rounds)

    def ratio(key: str, side: str = "solon") -> float:
        return statistics.median(one[side][key] / one["trl"][key] for one in rounds)

    def both(metric: str, key: str) -> Row:
        return Row(f"{title}: {metric}", median("solon", key), median("trl", key))

    found = [
        both("trained rollouts/s (reference: TRL)", "rollouts_per_s"),
        Row(f"{title}: trained rollouts/s, ratio", ratio("rollouts_per_s"), goal=goal),
        both("seconds a step", "step_s"),
        both("core-seconds a trained rollout", "cpu_s_per_rollout"),
        Row(f"{title}: core-seconds a trained rollout, ratio", ratio("cpu_s_per_rollout"), goal="<= 1"),
        both("peak memory, MiB", "peak_mib"),
        both("start-up, s", "startup_s"),
    ]
    found += _learned(rounds, title=title, seconds=seconds)
    return [*found, *_as_shipped([one for one in rounds if "ppo" in one], title=title)]


def _as_shipped(rounds: Sequence[Mapping[str, Measured]], *, title: str) -> list[Row]:
    """Solon with its own defaults: PPO with a critic, a reference and two optimiser steps a batch."""
    metrics = {
        "trained rollouts/s": "rollouts_per_s",
        "core-seconds a trained rollout": "cpu_s_per_rollout",
        "held-out adherence at the end": "adherence_final",
    }
    found = []
    for metric, key in metrics.items():
        pairs = [(one["ppo"][key], one["trl"][key]) for one in rounds if key in one["ppo"]]
        if pairs:
            ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
            found.append(Row(f"{title}: PPO as shipped, {metric}", ours, theirs))
    return found


def _learned(rounds: Sequence[Mapping[str, Measured]], *, title: str, seconds: float) -> list[Row]:
    sides = [one[side] for one in rounds for side in ("solon", "trl")]

    def mean(side: str, key: str) -> float:
        return statistics.fmean(one[side][key] for one in rounds)

    found = []
    if all("adherence_equal_time" in side for side in sides):
        gains = mean("solon", "adherence_equal_time") - mean("trl", "adherence_equal_time")
        key = "adherence_equal_time"
        found.append(Row(f"{title}: held-out adherence after equal time, mean", mean("solon", key), mean("trl", key)))
        found.append(Row(f"{title}: held-out adherence after equal time, difference", gains, goal=">= 0"))
    if not seconds and all("adherence_final" in side for side in sides):
        key = "adherence_final"
        found.append(Row(f"{title}: held-out adherence after equal steps, mean", mean("solon", key), mean("trl", key)))
    return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--policy", default="nursery", help="nursery, english, or a model that then judges itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--steps", type=int, help="default: the run file's")
    parser.add_argument("--seconds", type=float, default=0.0, help="end both sides after this much training")
    parser.add_argument("--results", type=Path, help="keep rounds here, and count those that are here already")
    parser.add_argument("--no-ppo", action="store_true", help="leave out the run with Solon's own defaults")
    parser.add_argument("--set", action="append", default=[], help="a key of the run file, for both sides")
    parser.add_argument("--trl-python", default=sys.executable, help="the interpreter of TRL's side")
    parser.add_argument("--trl-generation", default="transformers", choices=("transformers", "vllm", "continuous"))
    parser.add_argument("--trl-micro-batch", type=int, default=128, help="rollouts in one forward pass of TRL")
    parser.add_argument("--trl-threads", type=int, default=CORES)
    parser.add_argument("--trl-judge-threads", type=int, default=CORES)
    parser.add_argument("--trl-bf16", action=argparse.BooleanOptionalAction, help="default: as Solon's learner")
    return parser.parse_args(argv)


def plan_of(options: argparse.Namespace, scratch: Path) -> Plan:
    path = run_file(options.policy, scratch)
    run = load(path, options.set)
    return Plan(
        policy=options.policy,
        run=path,
        steps=options.steps or (6 if options.quick else run.steps),
        seconds=options.seconds,
        rollouts=run.ledger.batch_groups * run.rollout.group_size,
        evaluator=run.evaluate.evaluator,
        options=options,
    )


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        plan = plan_of(options, Path(scratch))
        results = options.results or Path(scratch) / "results"
        results.mkdir(parents=True, exist_ok=True)
        for seed in range(options.seed, options.seed + (1 if options.quick else options.rounds)):
            found = measure_round(plan, seed, Path(scratch) / f"round-{seed}")
            (results / f"round-{seed}.json").write_text(json.dumps(found))
        rounds = [json.loads(path.read_text()) for path in sorted(results.glob("round-*.json"))]
    title = options.policy if options.policy in GOALS else Path(options.policy).name
    found_rows = rows(
        rounds, title=f"{title}, {plan.steps} steps", goal=GOALS.get(options.policy, ""), seconds=plan.seconds
    )
    report("against_trl" if options.policy == "nursery" else f"against_trl_{title}", found_rows, options.json)


if __name__ == "__main__":
    main()
