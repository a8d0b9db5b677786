"""Criteria for labelling an item: uncertainty, impact, and difference from the others.

All of them are at least 0, [N]; `solon.feedback.selection.policy` turns them into propensities.
"""

# N items, K proxies, H width of an embedding

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solon.errors import InputError
from solon.feedback.quality.intervals import Floats
from solon.feedback.quality.metrics import sigmoid


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Facts about N items before they are labelled; a policy reports missing ones."""

    num: int
    margins_KN: NDArray[np.float64] | None = None
    """Log-odds by K proxies, nats; the first row is the main proxy."""
    advantages_N: NDArray[np.float64] | None = None
    embeddings_NH: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        columns = {"margins": self.margins_KN, "advantages": self.advantages_N, "embeddings": self.embeddings_NH}
        axes = {"margins": -1, "advantages": 0, "embeddings": 0}
        for name, values in columns.items():
            wanted = 1 if name == "advantages" else 2
            if values is None:
                continue
            if values.ndim != wanted or values.shape[axes[name]] != self.num or not np.isfinite(values).all():
                raise InputError(f"{name}: got shape {values.shape}, expected finite numbers for {self.num} items")

    def taken(self, rows: Sequence[int]) -> Signals:
        """The signals of some of the items."""
        at = list(rows)
        margins, advantages, embeddings = self.margins_KN, self.advantages_N, self.embeddings_NH
        return Signals(
            num=len(at),
            margins_KN=None if margins is None else margins[:, at],
            advantages_N=None if advantages is None else advantages[at],
            embeddings_NH=None if embeddings is None else embeddings[at],
        )


def uncertainty(margins_N: ArrayLike) -> Floats:
    """Entropy of the proxy's verdict, nats."""
    p_N = sigmoid(np.asarray(margins_N, dtype=np.float64))
    return _plogp(p_N) + _plogp(1 - p_N)


def disagreement(margins_KN: ArrayLike) -> Floats:
    """Variance over proxies of their margins. Unlike uncertainty it does not confuse a tie with ignorance: proxies that
    recognise a tie agree."""
    return np.asarray(_proxies(margins_KN).var(0))


def divergence(margins_KN: ArrayLike) -> Floats:
    """Jensen-Shannon divergence of K proxies' verdicts, nats: how much a label would tell about which of them is right
    (Houlsby et al. 2011). Like `disagreement`, but different confidence in the same verdict does not count."""
    margins = _proxies(margins_KN)
    p_KN = sigmoid(margins)
    p_N = p_KN.mean(0)
    mixed_N = _plogp(p_N) + _plogp(1 - p_N)
    return np.asarray(np.maximum(mixed_N - (_plogp(p_KN) + _plogp(1 - p_KN)).mean(0), 0.0))


def near_tie(margins_N: ArrayLike, width: float) -> Floats:
    """exp(-|margin| / width)."""
    return np.asarray(np.exp(-np.abs(np.asarray(margins_N, dtype=np.float64)) / width))


def impact(advantages_N: ArrayLike, margins_N: ArrayLike) -> Floats:
    """How far a wrong verdict would push the policy: |advantage| times the entropy of the verdict."""
    return np.asarray(np.abs(np.asarray(advantages_N, dtype=np.float64)) * uncertainty(margins_N))


def diversity(embeddings_NH: ArrayLike, clusters: int) -> Floats:
    """One over the size of an item's cluster, so that all clusters expect equally many labels.

    Centres are chosen farthest first (k-centre, Gonzalez 1985), starting with the item farthest from the mean; an item
    belongs to the nearest centre.
    """
    points = np.asarray(embeddings_NH, dtype=np.float64)
    if not len(points):
        return np.zeros(0)
    start = int(((points - points.mean(0)) ** 2).sum(1).argmax())
    distance_N = ((points - points[start]) ** 2).sum(1)
    cluster_N = np.zeros(len(points), np.intp)
    for cluster in range(1, min(clusters, len(points))):
        centre = int(distance_N.argmax())
        if distance_N[centre] == 0:
            break  # every distinct point is a centre
        to_centre_N = ((points - points[centre]) ** 2).sum(1)
        cluster_N[to_centre_N < distance_N] = cluster
        distance_N = np.minimum(distance_N, to_centre_N)
    return np.asarray(1.0 / np.bincount(cluster_N)[cluster_N])


def _proxies(margins_KN: ArrayLike) -> Floats:
    margins = np.asarray(margins_KN, dtype=np.float64)
    if margins.ndim != 2 or len(margins) < 2:
        raise InputError(f"disagreement: got margins of shape {margins.shape}, expected those of two proxies at least")
    return margins


def _plogp(p_N: Floats) -> Floats:
    """-p log p, 0 at 0."""
    return np.asarray(-p_N * np.log(np.maximum(p_N, 1e-300)))
