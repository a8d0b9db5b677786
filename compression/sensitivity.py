"""Which units of a model its preferences depend on: every unit compressed alone, and every unit kept alone.

    in   one unit in one format, all others kept
    out  one unit kept, all others in their smallest format: what it costs beside the others' damage
    low  all units in their smallest format

Finished sweeps are kept in a file and never repeated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from compression.flips import Damage, damage
from compression.live import LiveModel
from compression.pairs import Pair, Scores, scores_of
from compression.roles import Scoring
from compression.units import Unit
from solon.models.formats import FORMATS, KEEP

Kind = Literal["in", "out", "low"]
Guide = Literal["preferences", "perplexity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One measurement. `unit` and `form` are empty where they do not apply."""

    kind: Kind
    unit: str
    form: str
    damage: Damage

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies it within one model and one set of pairs."""
        return self.kind, self.unit, self.form


class SweepFile:
    """Sweeps on disk, a line each; a torn last line is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str, str], Sweep] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                found = Sweep(kind=row["kind"], unit=row["unit"], form=row["form"], damage=Damage(**row["damage"]))
            except (ValueError, KeyError, TypeError):
                continue
            self._known[found.key] = found

    def get(self, key: tuple[str, str, str]) -> Sweep | None:
        """None: it has not been measured."""
        return self._known.get(key)

    def add(self, sweep: Sweep) -> None:
        """Keep it."""
        self._known[sweep.key] = sweep
        # A line of its own also after a torn one.
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n") and self._path.stat().st_size > 0
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(asdict(sweep)) + "\n")


def smallest(unit: Unit, formats: Sequence[str]) -> str:
    """The smallest of the formats that fit a unit; `keep` where none does."""
    fitting = [name for name in formats if unit.fits(FORMATS[name])]
    return min([*fitting, KEEP], key=lambda name: unit.size(FORMATS[name]))


def sweeps_of(
    live: LiveModel,
    pairs: Sequence[Pair],
    before: Scores,
    formats: Sequence[str],
    file: SweepFile,
    tick: Callable[[float], None] = lambda _: None,
    *,
    scores: Scoring = scores_of,
) -> list[Sweep]:
    """Measure what is not in the file. before: scores of the pairs by the model as it is. tick: share that is done.
    scores: as its role is scored."""
    plan = list(_plan(live.units, formats))
    found = []
    for number, (key, assignment) in enumerate(plan):
        sweep = file.get(key)
        if sweep is None:
            with live.compressed(assignment) as model:
                after = scores(model, pairs)
            sweep = Sweep(kind=key[0], unit=key[1], form=key[2], damage=damage(before, after))
            file.add(sweep)
        found.append(sweep)
        tick((number + 1) / len(plan))
    return found


def _plan(units: Sequence[Unit], formats: Sequence[str]) -> Iterator[tuple[tuple[Kind, str, str], dict[str, str]]]:
    low = {unit.name: smallest(unit, formats) for unit in units}
    yield ("low", "", ""), low
    for unit in units:
        for name in formats:
            if name != KEEP and unit.fits(FORMATS[name]):
                yield ("in", unit.name, name), {unit.name: name}
        yield ("out", unit.name, ""), {**low, unit.name: KEEP}


def ranking_agreement(units: Sequence[Unit], formats: Sequence[str], sweeps: Sequence[Sweep]) -> float:
    """Kendall's tau between the units' harm to preferences and to perplexity, each alone in its smallest format:
    where it is low, perplexity would give bits to other units. NaN: of a reward model."""
    from scipy.stats import kendalltau

    known = {sweep.key: sweep.damage for sweep in sweeps}
    alone = [known[key] for unit in units if (key := ("in", unit.name, smallest(unit, formats))) in known]
    nll = [one.nll for one in alone if one.nll is not None]
    if len(nll) < len(alone):
        return math.nan
    return float(kendalltau([one.soft_flips for one in alone], nll).statistic)


Costs = dict[tuple[str, str], float]
"""Harm of a unit in a format."""


def costs_of(units: Sequence[Unit], formats: Sequence[str], sweeps: Sequence[Sweep], *, guide: Guide) -> Costs:
    """Half the harm of a unit alone, half of what it adds beside the others' damage; 0 where it is kept.

    The second half is measured for the smallest format and scaled to others by their harm alone. guide: by soft flips
    of preferences, or by the nats a token of the chosen answers.
    """

    def measured(sweep: Sweep) -> float:
        return sweep.damage.soft_flips if guide == "preferences" else sweep.damage.nll or 0.0

    known = {sweep.key: measured(sweep) for sweep in sweeps}
    costs: Costs = {}
    for unit in units:
        costs[unit.name, KEEP] = 0.0
        low = smallest(unit, formats)
        alone_low = known.get(("in", unit.name, low), 0.0)
        beside = max(0.0, known["low", "", ""] - known["out", unit.name, ""])
        for name in formats:
            alone = known.get(("in", unit.name, name))
            if name == KEEP or alone is None:
                continue
            share = max(0.0, alone) / alone_low if alone_low > 0 else 1.0
            costs[unit.name, name] = max(0.0, 0.5 * (alone + min(1.0, share) * beside))
    return costs
