"""Which units of a model its preferences depend on: every unit compressed alone, and every unit kept alone.

    in   one unit in one format, all others kept
    out  one unit kept, all others in their smallest format: what it costs beside the others' damage
    low  all units in their smallest format

Finished sweeps are kept in a file and never repeated. The file belongs to a model and a set of pairs, not to a target:
`sweeps_digest` names all that a sweep depends on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from compression.flips import BETA, Damage, damage
from compression.live import LiveModel
from compression.pairs import Pair, Scores, digest_of_pairs, scores_of
from compression.roles import Scoring
from compression.units import Unit
from solon.errors import RunFailedError
from solon.models.formats import FORMATS, KEEP

Kind = Literal["in", "out", "low"]
Guide = Literal["preferences", "perplexity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One measurement. `unit` is empty where it does not apply."""

    kind: Kind
    unit: str
    form: str
    """Of `in`: the format of the unit. Of the others: the smallest formats of the units, which depend on the formats
    that are allowed."""
    damage: Damage

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies it within one model and one set of pairs."""
        return self.kind, self.unit, self.form


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A sweep that is to be measured."""

    kind: Kind
    unit: str
    form: str
    assignment: dict[str, str]
    """The format of each unit; units that are not named are kept."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Of the sweep."""
        return self.kind, self.unit, self.form


Measure = Callable[[Sequence[Planned]], Iterable[Sweep]]
"""Measures what is planned, in any order."""
Sweeper = Callable[[Path, Sequence[Pair], Scores, Sequence[Planned]], Iterable[Sweep]]
"""The same for a model directory, with pairs and their scores by the model as it is: in other processes, say."""


def sweeps_digest(weights: str, pairs: Sequence[Pair], versions: Mapping[str, str]) -> str:
    """Identifies all that a sweep depends on, 12 digits. weights: their digest. pairs: those of the sweeps."""
    parts = [weights, digest_of_pairs(pairs), BETA, sorted(versions.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


class SweepFile:
    """Sweeps on disk, a line each; a torn last line is dropped, and the first of equal ones counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str, str], Sweep] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                found = Sweep(kind=row["kind"], unit=row["unit"], form=row["form"], damage=Damage(**row["damage"]))
            except (ValueError, KeyError, TypeError):
                continue
            self._known.setdefault(found.key, found)

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


def measured(
    live: LiveModel,
    pairs: Sequence[Pair],
    before: Scores,
    planned: Sequence[Planned],
    *,
    scores: Scoring = scores_of,
) -> Iterator[Sweep]:
    """Measure in this process. before: scores of the pairs by the model as it is; scores: as its role is scored."""
    for one in planned:
        with live.compressed(one.assignment) as model:
            after = scores(model, pairs)
        yield Sweep(kind=one.kind, unit=one.unit, form=one.form, damage=damage(before, after))


def sweeps_of(
    plan: Sequence[Planned], file: SweepFile, measure: Measure, tick: Callable[[float], None] = lambda _: None
) -> list[Sweep]:
    """The sweeps of a plan, in its order; what is not in the file is measured and added to it. tick: share that is
    done. Raises RunFailedError when `measure` leaves some out."""
    missing = [one for one in plan if file.get(one.key) is None]
    done = len(plan) - len(missing)
    tick(done / len(plan))
    with closing(_each(measure, missing)) as measuring:  # at once also after an error: it may hold a cluster
        for new in measuring:
            file.add(new)
            done += 1
            tick(min(1.0, done / len(plan)))
    found = [sweep for one in plan if (sweep := file.get(one.key)) is not None]
    if len(found) < len(plan):
        raise RunFailedError(
            f"{len(found)} of {len(plan)} sweeps were measured, expected all; start again: what is finished is kept"
        )
    return found


def _each(measure: Measure, missing: Sequence[Planned]) -> Generator[Sweep, None, None]:
    if missing:
        yield from measure(missing)


def plan_of(units: Sequence[Unit], formats: Sequence[str], *, only: Collection[str] | None = None) -> list[Planned]:
    """The sweeps that costs are made of. only: names of the units that are swept; None: all."""
    low = {unit.name: smallest(unit, formats) for unit in units}
    # Formats stand in the order of FORMATS, so these names say what every unit has.
    names = "+".join(name for name in FORMATS if name in low.values())
    plan = [Planned(kind="low", unit="", form=names, assignment=low)]
    for unit in units:
        if only is not None and unit.name not in only:
            continue
        for name in formats:
            if name != KEEP and unit.fits(FORMATS[name]):
                plan.append(Planned(kind="in", unit=unit.name, form=name, assignment={unit.name: name}))
        plan.append(Planned(kind="out", unit=unit.name, form=names, assignment={**low, unit.name: KEEP}))
    return plan


def ranking_agreement(units: Sequence[Unit], formats: Sequence[str], sweeps: Sequence[Sweep]) -> float:
    """Kendall's tau between the units' harm to preferences and to perplexity, each alone in its smallest format:
    where it is low, perplexity would give bits to other units. NaN: of a reward model, or of few units."""
    from scipy.stats import kendalltau

    known = {sweep.key: sweep.damage for sweep in sweeps}
    alone = [known[key] for unit in units if (key := ("in", unit.name, smallest(unit, formats))) in known]
    nll = [one.nll for one in alone if one.nll is not None]
    if len(nll) < len(alone) or len(alone) < LEAST_RANKED:
        return math.nan
    return float(kendalltau([one.soft_flips for one in alone], nll).statistic)


LEAST_RANKED = 8
"""Units, or units and formats, with fewer of which a rank correlation says nothing."""
Costs = dict[tuple[str, str], float]
"""Harm of a unit in a format."""


def costs_of(units: Sequence[Unit], formats: Sequence[str], sweeps: Sequence[Sweep], *, guide: Guide) -> Costs:
    """Half the harm of a unit alone, half of what it adds beside the others' damage; 0 where it is kept.

    The second half is measured for the smallest format and scaled to others by their harm alone. Units without sweeps
    have no costs. guide: by soft flips of preferences, or by the change of the nats a token of the chosen
    answers.
    """

    def harm(sweep: Sweep) -> float:
        # A gain of perplexity is a change too: counted as none, all bytes that are left would stay unspent.
        return sweep.damage.soft_flips if guide == "preferences" else abs(sweep.damage.nll or 0.0)

    alone_of = {(sweep.unit, sweep.form): harm(sweep) for sweep in sweeps if sweep.kind == "in"}
    out_of = {sweep.unit: harm(sweep) for sweep in sweeps if sweep.kind == "out"}
    all_low = next(harm(sweep) for sweep in sweeps if sweep.kind == "low")
    costs: Costs = {}
    for unit in units:
        if unit.name not in out_of:
            continue
        costs[unit.name, KEEP] = 0.0
        low = smallest(unit, formats)
        alone_low = alone_of.get((unit.name, low), 0.0)
        beside = max(0.0, all_low - out_of[unit.name])
        for name in formats:
            alone = alone_of.get((unit.name, name))
            if name == KEEP or alone is None:
                continue
            share = max(0.0, alone) / alone_low if alone_low > 0 else 1.0
            costs[unit.name, name] = max(0.0, 0.5 * (alone + min(1.0, share) * beside))
    return costs
