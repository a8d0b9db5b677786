"""Calibration: from a judge's raw margins to log-odds that match the observed frequencies.

    calibrated = raw / temperature - bias            (temperature scaling, Guo et al., arXiv:1706.04599)

Two numbers per task, fitted on pairs with gold labels, are valid for one judge in one arithmetic, one template and one
constitution. They are applied when a verdict is read, so that a new calibration costs no forward pass.
"""

# N pairs

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from solon.errors import InputError
from solon.feedback.quality.intervals import Floats, Interval, checked_weights, effective_pairs, rows
from solon.feedback.quality.metrics import brier, debiased_error, ece, ece_floor, nll, sigmoid
from solon.verdicts import Task

FEWEST_PAIRS = 100
"""Fewer pairs cannot determine two numbers: a temperature from 100 pairs is known to about 20 %."""
WANTED_PAIRS = 2000
"""Pairs that make the measured calibration error meaningful; 15 bins of fewer pairs show mostly noise."""
PRINCIPLE_PAIRS = 500
"""A principle with this many pairs may get a calibration of its own."""
FLATTEST = 1e-3
"""The mean calibrated margin is at least this many nats."""

FOLDS = 5

Bound = Literal["none", "sharp", "flat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fit(temperature=1.8, bias=0.0). `bound`: the limit that the temperature reached."""

    temperature: float
    bias: float
    bound: Bound = "none"

    def __call__(self, raw_margins_N: ArrayLike) -> Floats:
        """Calibrated margins."""
        return np.asarray(raw_margins_N, dtype=np.float64) / self.temperature - self.bias


def fit(raw_margins_N: ArrayLike, targets_N: ArrayLike, weights_N: ArrayLike | None = None, *, fit_bias: bool) -> Fit:
    """The temperature (and bias) with the least weighted negative log-likelihood of the targets.

    raw_margins_N: nats. targets_N: probability that the first answer is better, or that the answer is yes, from 0 to
    1. weights_N: inverse selection probability of each pair. fit_bias: False for pairs, where a bias would favour the
    answer shown first and break p(x over y) + p(y over x) = 1; so it does not matter on which side gold has the better
    answer. True for yes/no questions and scores.

    If every pair is right, the likelihood grows without bound as the temperature falls. The temperature then stops at
    the confidence that N pairs can support, N + 1 to 1 for the mean margin (Laplace's rule), and `bound` is "sharp".
    If the margins carry no information, or the opposite, it stops where they hardly count, and `bound` is "flat".
    Raises InputError for too few pairs, identical margins, or a bias fit with only one kind of target.
    """
    raw, targets, weights = _checked(raw_margins_N, targets_N, weights_N, fit_bias=fit_bias)
    return _fit(raw, targets, weights, fit_bias=fit_bias)


def _checked(
    raw_margins_N: ArrayLike, targets_N: ArrayLike, weights_N: ArrayLike | None, *, fit_bias: bool
) -> tuple[Floats, Floats, Floats]:
    columns = rows(raw_margins=raw_margins_N, targets=targets_N)
    raw, targets = columns["raw_margins"], columns["targets"]
    weights = checked_weights(weights_N, len(raw))
    if targets.min() < 0 or targets.max() > 1:
        raise InputError(f"targets: got {targets.min()} to {targets.max()}, expected probabilities from 0 to 1")
    if (enough := effective_pairs(weights)) < FEWEST_PAIRS:
        raise InputError(
            f"got {len(raw)} gold pairs that count as {enough:.0f}, expected at least {FEWEST_PAIRS} (better "
            f"{WANTED_PAIRS}) to fit a calibration; label more pairs"
        )
    counted = targets[weights > 0]
    if fit_bias and counted.max() == counted.min() and counted[0] in (0, 1):
        raise InputError(
            f"all {len(counted)} targets are {counted[0]:.0f}, expected both kinds to fit a bias; add gold of the "
            "other kind"
        )
    return raw, targets, weights


def _fit(raw_N: Floats, targets_N: Floats, weights_N: Floats, *, fit_bias: bool) -> Fit:
    from scipy.optimize import minimize

    counted = raw_N[weights_N > 0]
    if not counted.any() or (fit_bias and np.ptp(counted) == 0):
        said = f"{counted[0]} about all {len(counted)} gold pairs" if len(counted) else "nothing about the gold pairs"
        raise InputError(
            f"the judge says {said} that are fitted on, expected margins that differ; check its questions and template"
        )
    weights = weights_N / weights_N.sum()
    centre = float(weights @ raw_N) if fit_bias else 0.0
    scale = float(weights @ np.abs(raw_N - centre))
    steepest = math.log(effective_pairs(weights) + 1)
    unit_N = (raw_N - centre) / scale

    # In 1 / temperature and bias the loss is convex: there is one minimum, and any descent finds it.
    def loss(at: Floats) -> tuple[float, Floats]:
        margins = at[0] * unit_N - at[1]
        wrong = sigmoid(margins) - targets_N
        value = weights @ (np.logaddexp(0.0, margins) - targets_N * margins)
        return float(value), np.array([weights @ (wrong * unit_N), -(weights @ wrong) if fit_bias else 0.0])

    limits = [(FLATTEST, steepest), (-steepest, steepest) if fit_bias else (0.0, 0.0)]
    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=limits, options={"ftol": 1e-15, "gtol": 1e-10}
    )
    slope, offset = (float(number) for number in found.x)
    bound: Bound = "sharp" if slope >= steepest * (1 - 1e-9) else "flat" if slope <= FLATTEST * (1 + 1e-9) else "none"
    temperature = scale / slope
    return Fit(temperature=temperature, bias=offset + centre / temperature if fit_bias else 0.0, bound=bound)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Section):
    """Quality of margins on pairs that they were not fitted on."""

    nll: Interval
    brier: Interval
    ece: Interval
    ece_floor: float
    """Average of `ece` from noise alone."""
    debiased_error: float
    """Root mean square error of the same bins, corrected for noise."""


class Calibration(_Section):
    """The calibration of one task, or of one principle within it, and its benefit."""

    task: Task
    principle_id: str = ""
    """Empty: applies to every principle of the task without its own calibration."""
    temperature: float = Field(gt=0, allow_inf_nan=False)
    bias: float = Field(0.0, allow_inf_nan=False)
    """Nats, subtracted; 0 for pairs."""
    bound: Bound = "none"
    """`sharp` or `flat`: the temperature reached a limit, see `fit`."""
    pairs: int = Field(ge=1)
    effective_pairs: float = Field(gt=0)
    folds: int = Field(ge=2)
    before: Measured
    """Raw margins."""
    after: Measured
    """Calibrated margins; every pair calibrated by a fit to the other folds."""

    @model_validator(mode="after")
    def _pairs_have_no_bias(self) -> Self:
        if self.task == "pairwise" and self.bias != 0:
            raise ValueError(f"bias {self.bias} for pairs, expected 0: a bias would favour the answer shown first")
        return self

    @property
    def warning(self) -> str:
        """A warning for people before they rely on it; empty: none."""
        said = {
            "none": "",
            "sharp": "nearly every gold pair is right, so the temperature is only the lowest one that they support",
            "flat": "the margins carry no information about gold, or the opposite; this judge should not label",
        }[self.bound]
        few = f"fitted on {self.effective_pairs:.0f} pairs, {WANTED_PAIRS} are advised"
        return "; ".join(part for part in (said, few if self.effective_pairs < WANTED_PAIRS else "") if part)


def calibrate(
    task: Task,
    raw_margins_N: ArrayLike,
    targets_N: ArrayLike,
    *,
    rng: np.random.Generator,
    principle_id: str = "",
    weights_N: ArrayLike | None = None,
    clusters_N: ArrayLike | None = None,
    folds: int = FOLDS,
    resamples: int = 1000,
) -> Calibration:
    """Fit on all pairs, measure by cross-validation.

    clusters_N: items that must not be in two folds, such as the prompt of each pair: pairs of one prompt are similar,
    and a fold that was fitted on such pairs overstates the fit. The intervals draw whole clusters too.
    """
    gold = raw_margins_N, targets_N, weights_N, clusters_N
    return _calibrate(task, *gold, rng=rng, principle_id=principle_id, folds=folds, resamples=resamples)[0]


def _calibrate(
    task: Task,
    raw_margins_N: ArrayLike,
    targets_N: ArrayLike,
    weights_N: ArrayLike | None,
    clusters_N: ArrayLike | None,
    *,
    rng: np.random.Generator,
    principle_id: str,
    folds: int,
    resamples: int,
) -> tuple[Calibration, Floats]:
    """The calibration, and the margins on which it was measured."""
    fit_bias = task != "pairwise"
    raw, targets, weights = _checked(raw_margins_N, targets_N, weights_N, fit_bias=fit_bias)
    fold_N = _folds(len(raw), clusters_N, folds, rng)
    unseen = _out_of_sample(raw, targets, weights, fold_N, fit_bias=fit_bias)
    fitted = _fit(raw, targets, weights, fit_bias=fit_bias)

    def measured(margins: Floats) -> Measured:
        folded = not fit_bias
        intervals = {
            name: statistic.interval(rng, weights_N=weights, clusters_N=clusters_N, resamples=resamples)
            for name, statistic in {
                "nll": nll(margins, targets),
                "brier": brier(margins, targets),
                "ece": ece(margins, targets, folded=folded),
            }.items()
        }
        return Measured(
            **intervals,
            ece_floor=ece_floor(margins, folded=folded, weights_N=weights),
            debiased_error=debiased_error(margins, targets, folded=folded, weights_N=weights),
        )

    found = Calibration(
        task=task,
        principle_id=principle_id,
        temperature=fitted.temperature,
        bias=fitted.bias,
        bound=fitted.bound,
        pairs=len(raw),
        effective_pairs=effective_pairs(weights),
        folds=int(fold_N.max()) + 1,
        before=measured(raw),
        after=measured(unseen),
    )
    return found, unseen


def calibrate_principles(
    task: Task,
    raw_margins_N: ArrayLike,
    targets_N: ArrayLike,
    principle_ids_N: Sequence[str],
    *,
    rng: np.random.Generator,
    weights_N: ArrayLike | None = None,
    clusters_N: ArrayLike | None = None,
    resamples: int = 1000,
) -> tuple[Calibration, ...]:
    """The calibration of a task, and one for each principle that benefits from its own.

    A principle needs `PRINCIPLE_PAIRS` pairs. It benefits when its own fit predicts its pairs better, out of sample,
    than the fit to the whole task, by more than chance explains (paired bootstrap of the likelihoods).
    """
    weighted = None if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    clustered = None if clusters_N is None else np.asarray(clusters_N)
    whole = calibrate(
        task, raw_margins_N, targets_N, rng=rng, weights_N=weights_N, clusters_N=clusters_N, resamples=resamples
    )
    columns = rows(raw_margins=raw_margins_N, targets=targets_N)
    raw, targets, principles = columns["raw_margins"], columns["targets"], np.asarray(principle_ids_N)
    if principles.shape != raw.shape:
        raise InputError(f"got {len(principles)} principles for {len(raw)} pairs, expected one each")
    shared = Fit(temperature=whole.temperature, bias=whole.bias)
    own = []
    for principle_id in np.unique(principles).tolist():
        mine = principles == principle_id
        weights, clusters = (None if column is None else column[mine] for column in (weighted, clustered))
        if mine.sum() < PRINCIPLE_PAIRS:
            continue
        gold = raw[mine], targets[mine], weights, clusters
        try:
            found, unseen = _calibrate(
                task, *gold, rng=rng, principle_id=principle_id, folds=FOLDS, resamples=resamples
            )
        except InputError:  # targets of one kind, for example: it shares the task's calibration
            continue
        gain = nll(shared(raw[mine]), targets[mine]) - nll(unseen, targets[mine])
        if gain.interval(rng, weights_N=weights, clusters_N=clusters, resamples=resamples).low > 0:
            own.append(found)
    return (whole, *own)


def _folds(num: int, clusters_N: ArrayLike | None, folds: int, rng: np.random.Generator) -> NDArray[np.intp]:
    clusters = np.arange(num) if clusters_N is None else np.unique(np.asarray(clusters_N), return_inverse=True)[1]
    if len(clusters) != num:
        raise InputError(f"got {len(clusters)} clusters for {num} pairs, expected one each")
    num_clusters = int(clusters.max()) + 1
    if num_clusters < 2 or folds < 2:
        raise InputError(
            f"got {num_clusters} clusters and {folds} folds, expected two of each at least; gather gold "
            "from more prompts"
        )
    return (rng.permutation(num_clusters) % min(folds, num_clusters))[clusters]


def _out_of_sample(
    raw_N: Floats, targets_N: Floats, weights_N: Floats, fold_N: NDArray[np.intp], *, fit_bias: bool
) -> Floats:
    """Each pair's margin, calibrated by a fit to the other folds."""
    margins = np.empty_like(raw_N)
    for fold in range(int(fold_N.max()) + 1):
        inside = fold_N == fold
        fitted = _fit(raw_N[~inside], targets_N[~inside], weights_N[~inside], fit_bias=fit_bias)
        margins[inside] = fitted(raw_N[inside])
    return margins
