"""How much of a preference a compressed model has lost, on the same pairs as the model it was made from.

    s      margin of the aligned model on a pair: log p(chosen) - log p(rejected), nats; or a difference of rewards
    flip   the margin has changed its sign; harmful: it was above 0. "Accuracy is not all you need" (arXiv:2407.09141)
    soft   mean |sigmoid(beta s) - sigmoid(beta s')|: as flips, and without ties, so that it can rank layers
    damage mean max(0, s - s') over mean |s|: lost margin, which shrinks before verdicts flip

P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from compression.pairs import Scores

Floats = NDArray[np.float64]
BETA = 0.1
"""Nats that count are tens for whole answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Figures of one compressed model."""

    soft_flips: float
    flips: float
    net_flips: float
    """Harmful flips less those in the other direction."""
    margin_damage: float
    nll: float | None
    """Change of the nats a token of the chosen answers; None: of a reward model."""


def harm(before: Scores, after: Scores) -> Floats:
    """1: the preference was lost; -1: it was gained; 0: unchanged. [P]"""
    return _side(before.margin_P) - _side(after.margin_P)


def soft_flips(before: Scores, after: Scores) -> Floats:
    """Of each pair, 0 to 1. [P]"""
    found: Floats = np.abs(expit(BETA * before.margin_P) - expit(BETA * after.margin_P))
    return found


def damage(before: Scores, after: Scores) -> Damage:
    """All figures."""
    lost_P = np.maximum(0, before.margin_P - after.margin_P)
    return Damage(
        soft_flips=float(soft_flips(before, after).mean()),
        flips=float(np.abs(harm(before, after)).mean()),
        net_flips=float(harm(before, after).mean()),
        margin_damage=float(lost_P.mean() / max(1e-12, np.abs(before.margin_P).mean())),
        nll=None if before.nll is None or after.nll is None else after.nll - before.nll,
    )


def brier(scores: Scores, beta: float = BETA) -> Floats:
    """Squared error of the probability that the chosen answer is the better one. beta: 1 where margins are log-odds,
    as those of a judge. [P]"""
    found: Floats = (1 - expit(beta * scores.margin_P)) ** 2
    return found


def _side(margin_P: Floats) -> Floats:
    return (margin_P > 0).astype(np.float64)
