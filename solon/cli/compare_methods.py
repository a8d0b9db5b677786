"""`solon compare FILE`: several methods from one policy, over seeds, side by side.

methods x seeds ──align──▶ policies ──solon evaluate, a seed at a time──▶ table, comparison.json, comparison.html

Policies and scores are kept in the store of alignments: a second start makes none of them again.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solon.artifacts.code import code_digest
from solon.artifacts.digests import content_digest
from solon.cli.align import Lines, given_names
from solon.cli.evaluate import EvaluateRequest, check_evaluation, run_evaluate
from solon.cli.names import resolver
from solon.cli.tables import print_table
from solon.cli.train import runs_folder
from solon.errors import InputError, RunFailedError
from solon.evaluation.methods import Changes, Cost, MethodRow, advice, over_seeds
from solon.files.json_text import json_text
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


Run = tuple["Aligned", "AlignFile"]
"""A method with one seed."""


class Comparison:
    """Runs what is missing, and collects the figures."""

    def __init__(self, file: CompareFile, folder: Path, *, quiet: bool) -> None:
        from solon.artifacts.store import Store

        self._file, self._folder, self._quiet = file, folder, quiet
        self._console = Console(highlight=False, quiet=quiet, soft_wrap=True)
        self._store = Store(folder.parent / "artifacts")
        self.sizes: dict[str, float] = {}
        self.failed: dict[str, InputError | RunFailedError] = {}
        """Why, by method."""

    def planned(self) -> dict[str, Any]:
        """The stages of every method and seed, and which exist already; runs nothing. Raises InputError."""
        from cluster.align.execute import plan

        self._check()
        found = []
        for seed in self._file.seeds:
            for method in self._file.methods:
                file = self._file.alignment(method, seed, self.sizes.get(method.name, 1.0))
                paths = resolver(given_names(file), progress=not self._quiet)
                steps = plan(file, store=self._store, paths=paths, again_from="")
                stages = {step.stage.name: "" if step.found else step.reason for step in steps}
                shown = ", ".join(f"{name} ({why or 'exists'})" for name, why in stages.items())
                self._say(f"{method.name}, seed {seed}: {shown}")
                found.append({"method": method.name, "seed": seed, "stages": stages})
        self._say("stages that methods share are made once")
        return {"planned": found}

    def run(self) -> dict[str, Any]:
        """Raises InputError before anything runs, and when all methods failed the error of the first."""
        file = self._file
        self._check()
        runs: dict[str, list[Run]] = {one.name: [] for one in file.methods}
        for seed in file.seeds:
            for method in file.methods:
                if method.name not in self.failed:
                    try:
                        runs[method.name].append(self._sized(method, seed))
                    except (InputError, RunFailedError) as error:
                        self.failed[method.name] = error
                        self._say(f"{method.name} failed: {error}")
        runs = {name: some for name, some in runs.items() if name not in self.failed}
        if not runs:
            name, first = next(iter(self.failed.items()))
            raise type(first)(f"all methods failed; the first, {name}: {first}")
        scores = [self._evaluated(number, seed, runs) for number, seed in enumerate(file.seeds)]
        changes = {name: np.array([changes[name] for changes, _ in scores]) for name in runs}
        rows = [self._row(name, some, changes[name], [one for _, one in scores]) for name, some in runs.items()]
        return self._result(rows, changes)

    def _check(self) -> None:
        """What would end the comparison after hours. Raises InputError."""
        from cluster.align.checks import check_alignment

        file = self._file
        for method in file.methods:
            found = file.alignment(method, file.seeds[0], 1.0)
            check_alignment(found, resolver(given_names(found), progress=not self._quiet))
        with tempfile.TemporaryDirectory() as unused:
            request = self._request([file.policy], Path(unused), file.seeds[0])
            assert request.settings is not None
            names = [file.policy, request.prompts, request.judge, request.constitution]
            check_evaluation(request, request.settings, resolver(names, progress=not self._quiet))

    def _sized(self, method: MethodSection, seed: int) -> Run:
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

    def _aligned(self, method: MethodSection, seed: int, size: float) -> Run:
        from cluster.align.execute import align

        file = self._file.alignment(method, seed, size)
        self._say(f"{method.name}, seed {seed}")
        paths = resolver(given_names(file), progress=not self._quiet)
        view = Lines(quiet=self._quiet, total=len(file.stages))
        place = self._folder / method.name / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        return align(file, folder=place, store=self._store, paths=paths, again_from="", view=view), file

    def _request(self, models: Sequence[str], out: Path, seed: int) -> EvaluateRequest:
        from cluster.side_by_side import EvaluateSettings

        file, section = self._file, self._file.evaluate
        settings = {name: getattr(section, name) for name in ("sampling", "engine", "judging", "feedback")}
        return EvaluateRequest(
            models=models,
            prompts=file.heldout_prompts,
            out=out,
            evaluator=section.evaluator,
            judge=section.judge,
            constitution=(section.constitution or file.constitution) if section.judge else "",
            max_prompts=section.max_prompts,
            samples=section.samples,
            pairwise=False,
            settings=EvaluateSettings(**settings, data=file.data, seed=seed),
        )

    def _evaluated(
        self, number: int, seed: int, runs: Mapping[str, Sequence[Run]]
    ) -> tuple[dict[str, Changes], dict[str, Any]]:
        """Change of each prompt's mean score by method, [P], and the figures of the methods, for one seed."""
        from cluster.align.plan import versions
        from cluster.config.input_digests import source_digest
        from cluster.evaluate import PROGRAMS

        models = {name: _policy(*some[number]) for name, some in runs.items()}
        request = self._request(list(dict.fromkeys([self._file.policy, *models.values()])), Path(), seed)
        assert request.settings is not None
        paths = resolver(
            [*request.models, request.prompts, request.judge, request.constitution], progress=not self._quiet
        )
        key = {
            "stage": "evaluation",
            "settings": {
                **request.settings.model_dump(mode="json"),
                "samples": request.samples,
                "max_prompts": request.max_prompts,
                "by": request.evaluator,
            },
            "models": {name: source_digest(paths(name)) for name in request.models},
            "prompts": content_digest(Path(paths(request.prompts))),
            "judge": request.judge and source_digest(paths(request.judge)),
            "constitution": request.constitution and content_digest(Path(paths(request.constitution))),
            "code": code_digest("solon.cli.evaluate", *PROGRAMS.values()),
            "packages": versions(),
        }
        with self._store.alone_with(key):
            found = self._store.find(key)
            if found is None:
                self._say(f"evaluation of seed {seed}")
                with self._store.making(key) as making:
                    run_evaluate(dataclasses.replace(request, out=making.folder), as_json=True)
                found = self._store.find(key)
        assert found is not None
        lines = [json.loads(line)["scores"] for line in (found.folder / "scores.jsonl").read_text("utf-8").splitlines()]
        result = json.loads((found.folder / "evaluation.json").read_text(encoding="utf-8"))
        start = request.models[0]
        means = {model: np.array([_mean(one[model]) for one in lines]) for model in request.models}
        figures = {one["model"]: one for one in result["policies"]}
        return {name: means[model] - means[start] for name, model in models.items()}, {
            name: figures[model] for name, model in models.items()
        }

    def _row(
        self,
        name: str,
        runs: Sequence[Run],
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
            is_off_budget=self._is_off_budget(sum(one.seconds for one in costs) / count),
        )

    def _is_off_budget(self, seconds: float) -> bool:
        budget = self._file.budget_s
        return budget is not None and abs(seconds / budget - 1) > self._file.tolerance

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
            "failed": {name: str(error) for name, error in self.failed.items()},
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


def run_compare(
    path: Path, *, name: str | None, dry_run: bool, overrides: Sequence[str], as_json: bool
) -> dict[str, Any]:
    """Run what is missing of a comparison file, or with `dry_run` say what that is. Raises InputError,
    RunFailedError."""
    from cluster.align.compare_file import CompareFile

    file = CompareFile.load(path, overrides=overrides)
    folder = runs_folder() / (name or path.stem)
    if dry_run:
        return Comparison(file, folder, quiet=as_json).planned()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder.parent, error, "SOLON_RUNS") from None
    try:
        result = Comparison(file, folder, quiet=as_json).run()
    except OSError as error:
        raise RunFailedError(
            f"{error}; free space or change permissions, and start again: finished stages stay finished"
        ) from error
    return result


def _policy(done: Aligned, file: AlignFile) -> str:
    """The folder of the last policy that was made."""
    makers = [stage.name for stage in file.stages if "policy" in stage.makes]
    return str(done.made[makers[-1]].folder / "model")


def _cost(done: Aligned, file: AlignFile) -> Cost:
    """Of all stages but those that only measure, whenever they were made."""
    human, labels, seconds = set[str](), 0, 0.0
    for number, stage in enumerate(file.stages):
        if set(stage.makes) <= {"scores", "drift"}:
            continue
        record, sources = done.made[stage.name].record, file.sources(number)
        human |= {one.path for role, one in sources.items() if role in DATA and one.path}
        seconds += float(record.get("seconds") or 0.0)
        labels += int(record.get("critiques") or 0)
        # Rewards of a reward model are no labels: those that taught it were.
        if "judge" in sources and not sources["judge"].stage and isinstance(record.get("labels"), Mapping):
            labels += int(record["labels"].get("total") or 0)
    rows = sum(sum(1 for _ in read_rows(path, what="data")) for path in human)
    return Cost(human_labels=rows, ai_labels=labels, seconds=seconds)


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
