"""How far a run's symptoms have moved from those of its own first windows.

    labelled groups ──▶ windows of some hundred answers ──▶ the first ones: reference; the others: changes

A change proves nothing by itself: an improving policy also changes the spread of margins.
"""

# N values, B bins

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from solon.feedback.quality.intervals import Floats
from solon.feedback.watching.symptoms import Sample, Symptoms, sample_of, symptoms
from solon.feedback.watching.watch_state import SymptomState
from solon.records import Feedback, Group

BINS = 10
Way = Literal["more", "less", "either", "times", "part", "zero"]
"""More or less than the reference by an amount, either of them; longer or shorter by a factor; below a part of it;
away from zero whatever the reference is."""
LIMITS: tuple[tuple[str, Way, float, str], ...] = (
    ("length", "times", 1.5, "the length of answers changed"),
    ("length_reward", "more", 0.3, "the judge rewards length more"),
    ("repetition", "more", 0.1, "answers repeat themselves"),
    ("refusal", "either", 0.2, "the share of refusals changed"),
    ("boilerplate", "more", 0.2, "more answers have stock phrases"),
    ("opening", "more", 0.3, "answers begin alike"),
    ("markdown", "more", 3.0, "answers have more markdown"),
    ("emoji", "more", 2.0, "answers have more emoji"),
    ("distinct", "part", 0.5, "answers use fewer different word pairs"),
    ("overlap", "more", 0.3, "answers to one prompt are alike"),
    ("entropy", "more", 0.2, "the judge is less decided"),
    ("mass", "less", 0.1, "the judge puts less probability on its answer labels"),
    ("injection", "more", 0.01, "answers address the judge"),
    ("first_margin", "zero", 0.3, "the judge favours a position"),
)

COLLAPSES: tuple[tuple[str, Literal["alike", "part"], str], ...] = (
    ("opening", "alike", "of the answers begin with the same three words"),
    ("overlap", "alike", "of the word pairs of two answers to one prompt are the same"),
    ("length", "part", "of the first length is left of the answers"),
    ("distinct", "part", "of the first variety is left: different word pairs over all"),
)
"""Symptoms of a policy that gives the same answer to everything, or none."""
NEAR = 0.2
"""Answers within this distance of the limit in the first windows do not count as having become alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A symptom beyond its limit. Change(name="length", value=61.0, threshold=48.0, message="answers ...")"""

    name: str
    value: float
    threshold: float
    message: str
    was: float = math.nan
    """Value in the first windows."""
    is_collapse: bool = False
    """More than drift: see `collapses`."""

    @property
    def evolution(self) -> str:
        """From the first windows to now; without a first value, the present one."""
        was = f"{self.was:.3g} -> " if math.isfinite(self.was) else ""
        return f"{self.name.removeprefix('collapse/')} {was}{self.value:.3g}"


def changes(reference: Symptoms, now: Symptoms) -> list[Change]:
    """Symptoms that moved from the reference further than their limits; unknown ones are omitted."""
    found = []
    for name, way, limit, message in LIMITS:
        was, value = getattr(reference, name), getattr(now, name)
        if not (math.isfinite(was) and math.isfinite(value)):
            continue
        low, high = _allowed(was, way, limit)
        if value > high or value < low:
            bound = high if value > high else low
            found.append(Change(name=name, value=value, threshold=bound, message=message, was=was))
    return found


def collapses(reference: Symptoms, now: Symptoms, *, alike: float, part: float) -> list[Change]:
    """Symptoms of a collapsed policy. alike: answers are alike above this share. part: length and variety are lost
    below this part of their values in the first windows."""
    found = []
    for name, way, words in COLLAPSES:
        was, value = getattr(reference, name), getattr(now, name)
        if not (math.isfinite(was) and math.isfinite(value)):
            continue
        if way == "alike":
            threshold, share, is_so = alike, value, value > alike and was < alike - NEAR
        else:
            threshold, share, is_so = part * was, value / was if was else 1.0, value < part * was
        if is_so:
            message = f"{share:.0%} {words}"
            name = f"collapse/{name}"
            change = Change(name=name, value=value, threshold=threshold, message=message, was=was, is_collapse=True)
            found.append(change)
    return found


def _allowed(was: float, way: Way, limit: float) -> tuple[float, float]:
    match way:
        case "more":
            return -math.inf, was + limit
        case "less":
            return was - limit, math.inf
        case "either":
            return was - limit, was + limit
        case "times":
            return was / limit, was * limit
        case "part":
            return was * limit, math.inf
        case "zero":
            return -limit, limit


class SymptomDrift:
    """Windows of at least `answers` answers; the first `reference_windows` of them are the reference.

    At most one window is filled between two calls of `close`: further observations are dropped. A change is reported
    when two consecutive windows show it.
    """

    def __init__(
        self, *, answers: int, reference_windows: int, psi_limit: float, alike: float = 1.0, part: float = 0.0
    ) -> None:
        """alike, part: see `collapses`; with these defaults nothing is a collapse."""
        self._wanted, self._reference_windows, self._psi_limit = answers, reference_windows, psi_limit
        self._alike, self._part = alike, part
        self._labelled: list[tuple[Group, Feedback]] = []
        self._answers = 0
        self._first: list[Sample] = []
        self._reference: tuple[Symptoms, Floats] | None = None
        self._changed: set[str] = set()
        """Changes in the previous window."""

    @property
    def is_full(self) -> bool:
        """Whether the window has enough answers."""
        return self._answers >= self._wanted

    def state(self) -> SymptomState:
        """State for comparisons, without the unfinished window."""
        reference, margins = self._reference or (None, np.zeros(0))
        return SymptomState(
            first=tuple(self._first),
            reference=reference,
            margins=tuple(margins.tolist()),
            changed=frozenset(self._changed),
        )

    def restore(self, state: SymptomState) -> None:
        """Continue from a state."""
        self._first = list(state.first)
        self._reference = None if state.reference is None else (state.reference, np.array(state.margins))
        self._changed = set(state.changed)

    def observe(self, group: Group, feedback: Feedback) -> None:
        """Add a labelled group."""
        if not self.is_full:
            self._labelled.append((group, feedback))
            self._answers += len(group.rollouts)

    def close(self) -> tuple[dict[str, float], list[Change]] | None:
        """Metrics of a full window and its changes; None while it is not full."""
        if not self.is_full:
            return None
        sample = sample_of(self._labelled)
        self._labelled, self._answers = [], 0
        now = symptoms(sample)
        if self._reference is None:
            self._first.append(sample)
            if len(self._first) == self._reference_windows:
                self._reference = symptoms(merged(self._first)), np.array([m for s in self._first for m in s.margins])
                self._first = []
            return now.metrics(), []
        reference, margins = self._reference
        found = changes(reference, now) + collapses(reference, now, alike=self._alike, part=self._part)
        shift, (distance, _) = psi(margins, sample.margins), ks(margins, sample.margins)
        metrics = {"symptom/margin_psi/mean": shift, "symptom/margin_ks/mean": distance}
        if shift > self._psi_limit:
            message = "the verdicts are spread differently, so a calibration made for them is out of date"
            found.append(Change(name="margin_psi", value=shift, threshold=self._psi_limit, message=message))
        again = [change for change in found if change.name in self._changed]
        self._changed = {change.name for change in found}
        return now.metrics() | {key: value for key, value in metrics.items() if math.isfinite(value)}, again


def merged(samples: Sequence[Sample]) -> Sample:
    """Several samples as one; groups stay apart."""
    groups: list[int] = []
    for sample in samples:
        start = max(groups, default=-1) + 1
        groups += [start + group for group in sample.groups]
    return Sample(
        texts=tuple(text for s in samples for text in s.texts),
        groups=tuple(groups),
        rewards=tuple(reward for s in samples for reward in s.rewards),
        margins=tuple(margin for s in samples for margin in s.margins),
        first_margins=tuple(margin for s in samples for margin in s.first_margins),
        masses=tuple(mass for s in samples for mass in s.masses),
    )


def psi(reference_N: ArrayLike, window_N: ArrayLike, *, bins: int = BINS) -> float:
    """Population stability index of a window against the reference: sum (w - r) ln (w / r) over bins.

    The bins hold equal shares of the reference. Half an observation is added to every bin, since one empty bin would
    make it infinite; by chance alone it is about (bins - 1) (1 / n + 1 / m).
    """
    reference, window = _finite(reference_N), _finite(window_N)
    if not len(reference) or not len(window):
        return math.nan
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
    edges = edges[edges > reference.min()]  # no reference value lies below the minimum
    shares = []
    for values in (reference, window):
        counts_B = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) + 0.5
        shares.append(counts_B / counts_B.sum())
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def ks(reference_N: ArrayLike, window_N: ArrayLike) -> tuple[float, float]:
    """Largest distance of the two distribution functions, and the probability of at least as much by chance
    (Kolmogorov's limit with Stephens' correction)."""
    reference, window = np.sort(_finite(reference_N)), np.sort(_finite(window_N))
    if not len(reference) or not len(window):
        return math.nan, math.nan
    both = np.concatenate([reference, window])
    below = [np.searchsorted(values, both, side="right") / len(values) for values in (reference, window)]
    distance = float(np.abs(below[0] - below[1]).max())
    root = math.sqrt(len(reference) * len(window) / (len(reference) + len(window)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series needs too many terms here, where it is 1 to six digits
        return distance, 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 40)]
    return distance, min(1.0, max(0.0, 2 * sum(terms)))


def _finite(values_N: ArrayLike) -> Floats:
    values = np.asarray(values_N, np.float64)
    kept: Floats = values[np.isfinite(values)]
    return kept
