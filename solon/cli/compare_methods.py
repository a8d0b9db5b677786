"""`solon compare FILE`: several methods from one policy, over seeds, side by side.

methods x seeds ──align──▶ policies ──solon evaluate, a seed at a time──▶ table, comparison.json, comparison.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solon.cli.align import Lines, given_names
from solon.cli.evaluate import EvaluateRequest, run_evaluate
from solon.cli.names import resolver
from solon.cli.tables import print_table
from solon.cli.train import runs_folder
from solon.errors import InputError
from solon.evaluation.methods import Changes, Cost, MethodRow, advice, over_seeds
from solon.files.json_text import json_text
from solon.files.overrides import flat_items
from solon.files.rows import read_rows
from solon.files.whole_file import write_whole
from solon.host.user_folders import unusable

if TYPE_CHECKING:
    from cluster.align.compare_file import CompareFile, MethodSection
    from cluster.align.execute import Aligned
    from cluster.align.file import AlignFile

DATA = ("preferences", "demonstrations", "ratings")
"""Inputs that are labels of people when the user gives them as files."""
MOST_ATTEMPTS = 3
"""At a method's size, with the first seed."""


class Comparison:
    """Runs what is missing, and collects the figures."""

    def __init__(self, file: CompareFile, folder: Path, *, quiet: bool) -> None:
        from solon.artifacts.store import Store

        self._file, self._folder, self._quiet = file, folder, quiet
        self._console = Console(highlight=False, quiet=quiet, soft_wrap=True)
        self._store = Store(folder.parent / "artifacts")
        self.sizes: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Raises InputError, RunFailedError."""
        runs: dict[str, list[tuple[Aligned, AlignFile]]] = {one.name: [] for one in self._file.methods}
        for seed in self._file.seeds:
            for method in self._file.methods:
                runs[method.name].append(self._sized(method, seed))
        scores = [self._evaluated(number, seed, runs) for number, seed in enumerate(self._file.seeds)]
        changes = {name: np.array([scores[n][0][name] for n in range(len(scores))]) for name in runs}
        rows = [self._row(name, some, changes[name], [one[1] for one in scores]) for name, some in runs.items()]
        return self._result(rows, changes)

    def _sized(self, method: MethodSection, seed: int) -> tuple[Aligned, AlignFile]:
        """The stages of a method, at the size that costs the budget."""
        from cluster.align.sizes import next_size

        budget, attempts = self._file.budget_s, 0
        while True:
            size = self.sizes.get(method.name, 1.0)
            done = self._aligned(method, seed, size)
            attempts += 1
            if budget is None or seed != self._file.seeds[0] or attempts == MOST_ATTEMPTS:
                return done
            cost = _cost(*done).seconds
            larger = next_size(size, cost, budget, self._file.tolerance)
            if larger is None:
                return done
            self._say(f"{method.name}: {cost:.0f} s, budget {budget:.0f} s: next with {larger:.2f} times its size")
            self.sizes[method.name] = larger

    def _aligned(self, method: MethodSection, seed: int, size: float) -> tuple[Aligned, AlignFile]:
        from cluster.align.execute import align

        file = self._file.alignment(method, seed, size)
        self._say(f"{method.name}, seed {seed}")
        paths = resolver(given_names(file), progress=not self._quiet)
        view = Lines(quiet=self._quiet, total=len(file.stages))
        place = self._folder / method.name / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        return align(file, folder=place, store=self._store, paths=paths, again_from="", view=view), file

    def _evaluated(
        self, number: int, seed: int, runs: Mapping[str, Sequence[tuple[Aligned, AlignFile]]]
    ) -> tuple[dict[str, Changes], dict[str, Any]]:
        """Change of each prompt's mean score by method, [P], and the figures of the methods, for one seed."""
        file, out = self._file, self._folder / "evaluation" / f"seed-{seed}"
        models = {name: _policy(*some[number]) for name, some in runs.items()}
        section = file.evaluate
        settings = section.model_dump(mode="json", include={"sampling", "engine", "judging", "feedback"})
        request = EvaluateRequest(
            models=list(dict.fromkeys([file.beside(file.policy), *models.values()])),
            prompts=file.beside(file.heldout_prompts),
            out=out,
            evaluator=section.evaluator,
            judge=file.beside(section.judge),
            constitution=file.beside(section.constitution or file.constitution) if section.judge else "",
            max_prompts=section.max_prompts,
            samples=section.samples,
            overrides=[f"{key}={json.dumps(value)}" for key, value in flat_items({**settings, "seed": seed})],
        )
        self._say(f"evaluation of seed {seed}")
        result = run_evaluate(request, as_json=True)
        lines = [json.loads(line)["scores"] for line in (out / "scores.jsonl").read_text("utf-8").splitlines()]
        start = request.models[0]
        means = {model: np.array([_mean(one[model]) for one in lines]) for model in request.models}
        figures = {one["model"]: one for one in result["policies"]}
        return {name: means[model] - means[start] for name, model in models.items()}, {
            name: figures[model] for name, model in models.items()
        }

    def _row(
        self,
        name: str,
        runs: Sequence[tuple[Aligned, AlignFile]],
        changes_SP: Changes,
        figures: Sequence[Mapping[str, Any]],
    ) -> MethodRow:
        costs = [_cost(*one) for one in runs]
        drifts = [kl for done, _ in runs if (kl := _kl(done)) is not None]
        count = len(costs)
        return MethodRow(
            name=name,
            change=over_seeds(changes_SP),
            by_seed=tuple(float(value) for value in np.nanmean(changes_SP, axis=1)),
            cost=Cost(
                human_labels=round(sum(one.human_labels for one in costs) / count),
                ai_labels=round(sum(one.ai_labels for one in costs) / count),
                seconds=sum(one.seconds for one in costs) / count,
            ),
            kl=sum(drifts) / count if len(drifts) == count else None,
            degenerate=sum(sum(one[name]["degenerate"].values()) for one in figures) / count,
            words=sum(one[name]["words"] for one in figures) / count,
        )

    def _result(self, rows: Sequence[MethodRow], changes: Mapping[str, Changes]) -> dict[str, Any]:
        from solon.report.figures import write_page
        from solon.report.methods import figures

        said = advice(rows, changes)
        usd = self._file.usd_per_hour / 3600
        result = {
            "seeds": list(self._file.seeds),
            "prompts": int(rows[0].change.pairs),
            "methods": [
                {
                    **asdict(row),
                    "worst": row.worst,
                    "spread": row.spread,
                    "usd": row.cost.seconds * usd,
                    "size": self.sizes.get(row.name, 1.0),
                }
                for row in rows
            ],
            "advice": " ".join(said),
            "folder": str(self._folder),
        }
        write_whole(self._folder / "comparison.json", json_text(result, indent=1), what="comparison")
        page = self._folder / "comparison.html"
        write_page(figures(rows), page, title=f"Methods compared: {self._folder.name}", notes=[" ".join(said)])
        print_table(self._console, _table(rows, usd, len(self._file.seeds)))
        self._say(f"{' '.join(said)}\nwritten to {self._folder}: comparison.json, comparison.html")
        return result

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)


def run_compare(path: Path, *, name: str | None, overrides: Sequence[str], as_json: bool) -> dict[str, Any]:
    """Run what is missing of a comparison file. Raises InputError, RunFailedError."""
    from cluster.align.compare_file import CompareFile

    file = CompareFile.load(path, overrides=overrides)
    folder = runs_folder() / (name or path.stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder.parent, error, "SOLON_RUNS") from None
    return Comparison(file, folder, quiet=as_json).run()


def _policy(done: Aligned, file: AlignFile) -> str:
    """The folder of the last policy that was made. Raises InputError."""
    makers = [stage.name for stage in file.stages if "policy" in stage.makes]
    if not makers:
        raise InputError("a method makes no policy, expected a stage that trains one; add sft, dpo, kto or rlaif")
    return str(done.made[makers[-1]].folder / "model")


def _cost(done: Aligned, file: AlignFile) -> Cost:
    """Of all stages but the measurement of drift, whenever they were made."""
    from cluster.align.compare_file import DRIFT

    records = [artifact.record for name, artifact in done.made.items() if name != DRIFT]
    given = {
        source.path
        for number in range(len(file.stages))
        for role, source in file.sources(number).items()
        if role in DATA and source.path
    }
    labels = [record.get("labels") for record in records]
    return Cost(
        human_labels=sum(sum(1 for _ in read_rows(path, what="data")) for path in given),
        ai_labels=sum(int(one.get("total") or 0) for one in labels if isinstance(one, Mapping)),
        seconds=sum(float(record.get("seconds") or 0.0) for record in records),
    )


def _kl(done: Aligned) -> float | None:
    from cluster.align.compare_file import DRIFT
    from cluster.align.stages.drift import START

    found = done.made[DRIFT].record.get("kl") if DRIFT in done.made else None
    return float(found[START]) if isinstance(found, Mapping) and START in found else None


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores) if scores else float("nan")


def _table(rows: Sequence[MethodRow], usd: float, seeds: int) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"{seeds} seeds, {rows[0].change.pairs} prompts", title_justify="left")
    table.add_column("method")
    headings = ["change of the mean score", "worst seed", "spread", "human labels", "AI labels", "seconds"]
    for heading in (*headings, *(("USD",) if usd else ()), "KL", "degenerate", "words"):
        table.add_column(heading, justify="right")
    for row in rows:
        change = f"{row.change.value:+.3f} ({row.change.low:+.3f} to {row.change.high:+.3f})"
        cells = [row.name, change, f"{row.worst:+.3f}", f"{row.spread:.3f}"]
        cells += [str(row.cost.human_labels), str(row.cost.ai_labels), f"{row.cost.seconds:.0f}"]
        cells += [f"{row.cost.seconds * usd:.2f}"] if usd else []
        table.add_row(*cells, "" if row.kl is None else f"{row.kl:.2f}", f"{row.degenerate:.1%}", f"{row.words:.1f}")
    return table
