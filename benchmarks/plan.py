"""Plans against runs: what `solon plan` predicts from rates measured here, and what the same run file then does.

    python benchmarks/plan.py [--quick] [--json PATH] [--only nursery,on-policy,...] [--model DIR]

Five settings on the cores of this machine. For each one `solon measure` times its roles alone, the plan predicts, and
`solon train` runs it: throughput of trained groups, binding stage, mean staleness, peak memory of each role. Memory has
two rows: the peak that was measured alone, and the estimate that is known before anything is loaded. No evaluation and
no checkpoint between steps: a plan is about the loop.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from benchmarks._plan_runs import Measured, run_for_real

if TYPE_CHECKING:
    from cluster.plan.prediction import Prediction

ROOT = Path(__file__).resolve().parents[1]
NURSERY = ROOT / "examples" / "nursery.toml"
PLAIN = ("evaluate.prompts=", "evaluate.evaluator=", "checkpoint_every=0", "checkpoint_first=0")
SMOLLM2 = """
policy = "{model}"
judge = "{model}"
prompts = "{examples}/assistant_prompts.jsonl"
constitution = "{examples}/assistant.yaml"

[rollout]
group_size = 4
max_tokens = 48
max_model_len = 256
dtype = "bfloat16"
num_cpus = 0.5

[judging]
max_model_len = 1024
dtype = "bfloat16"
num_cpus = 0.5

[feedback]
task = "pointwise"
min_mass = 1e-9
principles_per_group = 1

[ledger]
batch_groups = 4

[learn]
objective = "group_relative"
dtype = "bfloat16"
num_cpus = 0.5
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A run file with overrides."""

    name: str
    steps: int
    changes: tuple[str, ...] = ()
    is_nursery: bool = True


SETTINGS = (
    Setting(name="nursery", steps=24),
    Setting(name="on-policy", steps=16, changes=("staleness.target_staleness=0",)),
    Setting(
        name="many-prompts",
        steps=24,
        changes=(
            "learn.objective=group_relative",
            "rollout.group_size=4",
            "ledger.batch_groups=32",
            "staleness.target_staleness=2",
        ),
    ),
    Setting(name="long-answers", steps=5, is_nursery=False),
    Setting(
        name="many-questions",
        steps=5,
        changes=("rollout.max_tokens=16", "feedback.principles_per_group=4"),
        is_nursery=False,
    ),
)


def rows_of(setting: Setting, model: str, *, quick: bool, folder: Path) -> list[Row]:
    """Measures, predicts, runs."""
    file = NURSERY
    if not setting.is_nursery:
        file = folder / f"{setting.name}.toml"
        file.write_text(SMOLLM2.format(model=model, examples=ROOT / "examples"))
    steps = max(3, setting.steps // 4) if quick else setting.steps
    changes = [*setting.changes, f"steps={steps}", *(PLAIN if setting.is_nursery else PLAIN[2:])]
    rates = folder / f"{setting.name}.json"
    flags = [part for change in changes for part in ("--set", change)]
    seconds = "2" if quick else "6"
    command = [sys.executable, "-m", "solon", "measure", str(file), "--out", str(rates), "--seconds", seconds, *flags]
    subprocess.run(command, cwd=ROOT, check=True)
    predicted, memory, estimate = predicted_by(file, changes, rates, steps)
    found = run_for_real(file, changes, folder=folder, name=setting.name)
    print(f"{setting.name}: predicted {predicted}; measured {found}", flush=True)
    return compared(setting.name, predicted, memory, estimate, found)


def predicted_by(
    file: Path, changes: list[str], rates: Path, steps: int
) -> tuple[Prediction, dict[str, int], dict[str, int]]:
    """(the prediction, measured memory by role, estimated memory by role)."""
    from cluster.config.fitting import fit_run, own_cpus
    from cluster.pipeline_file import load_run
    from cluster.plan.memory import roles_of, sizes_for
    from cluster.plan.prediction import predict
    from cluster.plan.rates import Rates
    from cluster.plan.splits import Split
    from solon.cli.names import with_paths

    run, _ = fit_run(with_paths(load_run(file, overrides=changes), progress=False), cpus=own_cpus())
    known, target = Rates.load(rates), run.staleness.target_staleness
    split = Split(engines=1, judges=1, ranks=1, staleness=target, on_cpu=True)
    roles = roles_of(run, sizes_for(run)[0], device=None, measured=known)
    return (
        predict(run, known, split, usd_per_hour=0.0, steps=steps),
        {role.role: role.total for role in roles},
        {role.role: role.estimate for role in roles},
    )


def compared(
    name: str, predicted: Prediction, memory: dict[str, int], estimate: dict[str, int], found: Measured
) -> list[Row]:
    """Predicted against measured, and by how much they differ, as a share of what was measured."""
    apart = abs(predicted.groups_per_s / found.groups_per_s - 1)
    stale = abs(predicted.staleness_mean - found.staleness) / max(found.staleness, 1.0)
    rows = [
        Row(f"{name}: trained groups/s, predicted (reference: measured)", predicted.groups_per_s, found.groups_per_s),
        Row(f"{name}: throughput, share that the prediction is off", apart, goal="<= 0.15"),
        Row(f"{name}: binding stage as predicted ({found.binding})", float(predicted.binding == found.binding),
            goal=">= 1"),
        Row(f"{name}: mean staleness, predicted (reference: measured)", predicted.staleness_mean, found.staleness),
        Row(f"{name}: staleness, share off", stale, goal="<= 0.15"),
    ]  # fmt: skip
    for lane, share in found.busy.items():
        rows.append(Row(f"{name}: {lane} busy, predicted (reference: measured)", predicted.busy[lane], share))
    for role, peak in found.memory.items():
        rows.append(
            Row(f"{name}: {role}, peak MiB by solon measure (reference: run)", memory[role] / 2**20, peak / 2**20)
        )
        rows.append(Row(f"{name}: {role}, memory share off", abs(memory[role] / peak - 1), goal="<= 0.1"))
        rows.append(Row(f"{name}: {role}, MiB estimated before loading", estimate[role] / 2**20, peak / 2**20))
    return rows


def main() -> None:
    names = [setting.name for setting in SETTINGS]
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", default=",".join(names), help="settings, separated by commas")
    parser.add_argument("--model", default="", metavar="DIR", help="in place of SmolLM2-135M")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--only got {', '.join(sorted(unknown))}, expected some of {', '.join(names)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        folder, model = Path(scratch), options.model
        for setting in (one for one in SETTINGS if one.name in wanted):
            if not setting.is_nursery and not model:
                from english.smollm2 import write_smollm2

                model = str(write_smollm2(folder / "smollm2"))
            rows += rows_of(setting, model, quick=options.quick, folder=folder)
    report("plan", rows, options.json)


if __name__ == "__main__":
    main()
