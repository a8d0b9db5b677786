"""Held-out answers of trained policies, scored by the run file's evaluator: one process for all sides and rounds.

    python benchmarks/_peer_evaluation.py --run examples/nursery.toml --out scores.json FOLDER...

The policies answer on the same engine, to the same prompts, with the same seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._peer_work import load, prompts_of
from cluster.config.run_file import RunFile

SEED = 20_000


async def scores(run: RunFile, folders: list[str]) -> dict[str, dict[str, float]]:
    """Share of held-out answers that keep each principle, and their `mean`, by folder."""
    from cluster.evaluate import ProgramEvaluator, mean_scores
    from solon.pipeline.rollout import RolloutSettings, RolloutWorker

    _, heldout = prompts_of(run)
    ask = ProgramEvaluator(run.evaluate.evaluator)
    found: dict[str, dict[str, float]] = {}
    settings = RolloutSettings(sampling=run.rollout.sampling(), group_size=1, seed=0)
    for folder in folders:
        engine = run.rollout.engine(folder, seed=0).model_copy(update={"threads": 2, "reloads": False})
        worker = RolloutWorker(engine, settings, name="policy")
        await worker.start()
        answers = await worker.answer(heldout, seed=SEED)
        found[folder] = mean_scores([one.obeys for one in await ask(heldout, answers)])
        await worker.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("folders", nargs="+")
    options = parser.parse_args()
    found = asyncio.run(scores(load(options.run, options.set), options.folders))
    options.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
