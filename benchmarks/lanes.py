"""Each lane against what it stands on, with a real model: SmolLM2-135M, or `--model DIR`.

    python benchmarks/lanes.py [--quick] [--json PATH] [--only rollout,judge,learner,publication,start] [--model DIR]

Every part runs in a process of its own, bound to the same cores. Both sides of a comparison are in that process and
take turns at the same work; rates are medians over the rounds, ratios medians over the rounds' own ratios, with the
smallest and largest.

rollout: tokens of `RolloutWorker`, which the rollout actor hosts, against `vllm.LLM.generate` with the same prompts,
seeds, lengths and engine settings. judge: verdicts of `JudgeWorker` with the rows of its labels written to disk,
against one-token `generate` on the same token ids. learner: `Trainer.train` against the same passes in plain PyTorch.
publication: export, transport, load and attestation against one plain copy of the same bytes. start: a run's time to
its first step against imports and engine builds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from benchmarks._rounds import pin
from english.smollm2 import write_smollm2

PARTS = ("rollout", "judge", "learner", "publication", "start")
CORES = 2


def rows_of(part: str, model: str, *, quick: bool) -> list[Row]:
    """Measure one part in this process."""
    match part:
        case "rollout":
            from benchmarks._lane_engines import rollout_rows

            return rollout_rows(model, quick=quick, threads=CORES)
        case "judge":
            from benchmarks._lane_engines import judge_rows

            return judge_rows(model, quick=quick, threads=CORES)
        case "learner":
            from benchmarks._lane_learner import learner_rows

            return learner_rows(model, quick=quick, threads=CORES)
        case "publication":
            from benchmarks._lane_publication import publication_rows

            return publication_rows(model, quick=quick, threads=1)
        case "start":
            from benchmarks._lane_start import start_rows

            return start_rows(model, quick=quick)
    raise ValueError(part)


def in_a_process(part: str, model: str, *, quick: bool, folder: Path) -> list[Row]:
    """The rows of a part, measured by a new process: the parts leave no threads or memory to each other."""
    path = folder / f"{part}.json"
    command = [sys.executable, __file__, "--only", part, "--model", model, "--json", str(path)]
    subprocess.run(command + ["--quick"] * quick, check=True)
    found = json.loads(path.read_text())["rows"]
    return [Row(**{key: row[key] for key in ("metric", "ours", "reference", "goal")}) for row in found]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--model", default="", metavar="DIR", help="a Hugging Face directory; default: SmolLM2-135M")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only got {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    pin(CORES)
    with tempfile.TemporaryDirectory(prefix="lanes-") as scratch:
        folder = Path(scratch)
        model = options.model or str(write_smollm2(folder / "smollm2"))
        if len(parts) == 1:
            rows = rows_of(parts[0], model, quick=options.quick)
        else:
            rows = [row for part in parts for row in in_a_process(part, model, quick=options.quick, folder=folder)]
    report("lanes", rows, options.json)


if __name__ == "__main__":
    main()
