"""Everything random in a simulation: answer lengths by ordinal, and when a worker dies.

A draw depends on the seed and on what it is for, never on the order of events, so that a group that is generated again
has the same answers. Shapes: N groups, G answers of each.
"""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from solon.simulation.scenario import Lengths, Scenario

BLOCK = 8192
"""Groups drawn at a time."""


class GroupLengths:
    """Tokens of every group, by ordinal."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._totals: list[int] = []
        self._longest: list[int] = []

    def total(self, ordinal: int) -> int:
        """Tokens of all answers of the group."""
        while ordinal >= len(self._totals):
            self._draw()
        return self._totals[ordinal]

    def longest(self, ordinal: int) -> int:
        """Tokens of its longest answer."""
        while ordinal >= len(self._longest):
            self._draw()
        return self._longest[ordinal]

    def _draw(self) -> None:
        block = len(self._totals) // BLOCK
        rng = np.random.default_rng([self._scenario.seed, block])
        lengths_NG = draw_lengths(self._scenario.lengths, rng, (BLOCK, self._scenario.group_size))
        self._totals += lengths_NG.sum(axis=1).tolist()
        self._longest += lengths_NG.max(axis=1).tolist()


def draw_lengths(lengths: Lengths, rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Tokens of answers, from 1 to `max_tokens`."""
    if lengths.observed:
        drawn_NG = rng.choice(np.asarray(lengths.observed, np.int64), shape)
    else:
        # The mean of a log-normal variable is exp(mu + sigma^2 / 2).
        mu = math.log(lengths.mean) - lengths.sigma**2 / 2
        drawn_NG = np.rint(rng.lognormal(mu, lengths.sigma, shape)).astype(np.int64)
    return np.clip(drawn_NG, 1, lengths.max_tokens)


class Lifetimes:
    """How long each process of one worker lives, one draw after the other."""

    def __init__(self, scenario: Scenario, worker: str, mtbf_s: float) -> None:
        self._random = random.Random(f"{scenario.seed} {worker}")
        self._mtbf_s = mtbf_s

    def draw_s(self) -> float:
        """Seconds that the next process lives; infinite when the worker never dies."""
        return self._random.expovariate(1 / self._mtbf_s) if self._mtbf_s else math.inf
