"""Two sides of a comparison that take turns: rounds of seconds, their medians and the spread of their ratios."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks._harness import Row


@dataclass(slots=True)
class Rounds:
    """Seconds of both sides for the same work, one entry each a round.

    rounds = Rounds("rollout, tokens/s", work=4096.0)
    rounds.take(3, ours, bare)
    """

    what: str
    work: float
    """Units (tokens, verdicts) that each side does in a round."""
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)

    def take(self, rounds: int, ours: Callable[[int], float], reference: Callable[[int], float]) -> None:
        """Both sides do the work of each round, in an order that alternates; each returns the seconds that it took."""
        for number in range(rounds):
            for is_ours in (True, False) if number % 2 else (False, True):
                if is_ours:
                    self.ours.append(ours(number))
                else:
                    self.reference.append(reference(number))
            print(f"{self.what}: round {number + 1}: {self.ours[-1]:.3g} s, reference {self.reference[-1]:.3g} s",
                  flush=True)  # fmt: skip

    @property
    def ratios(self) -> list[float]:
        """Our rate over the reference's, round by round."""
        return [theirs / own for own, theirs in zip(self.ours, self.reference, strict=True)]

    def rows(self, goal: str) -> list[Row]:
        """Median rates of both sides, then the median of the rounds' ratios, which has the goal."""
        rates = [self.work / statistics.median(seconds) for seconds in (self.ours, self.reference)]
        return [
            Row(self.what, rates[0], rates[1]),
            Row(f"the same, median of {len(self.ratios)} rounds' ratios ({spread(self.ratios)})",
                statistics.median(self.ratios), goal=goal),
        ]  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Smallest and largest.

    >>> spread([0.97, 1.02, 0.95])
    '0.95 to 1.02'
    """
    return f"{min(values):.3g} to {max(values):.3g}"


def timed(work: Callable[[], object]) -> float:
    """The seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pin(cores: int) -> list[int]:
    """Bind this process and its children to the same few cores for good; returns them."""
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    os.sched_setaffinity(0, chosen)
    return chosen
