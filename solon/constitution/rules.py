"""How a constitution's principles are weighed against each other, and which of them are asked about a group.

Margins are in nats; positive favours the answer, or the first of two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from solon.constitution.sections import Section


@dataclass(frozen=True, slots=True)
class Weighed:
    """The margin of one principle and its weight. `Weighed(0.7, weight=2.0, is_hard=True)`"""

    margin: float
    weight: float = 1.0
    is_hard: bool = False


class Aggregation(Section):
    """How the margins of several principles become one number."""

    method: Literal["mean", "weighted", "min", "lexicographic"] = "weighted"
    """`mean`: equal weights. `weighted`: by the principles' weights. `min`: the worst one. `lexicographic`: a broken
    hard principle decides alone; if none is broken, the others are weighed."""
    tie_band: float = Field(0.1, ge=0, allow_inf_nan=False)
    """A margin below this many nats is a tie."""

    def reward(self, found: Sequence[Weighed], *, clip: float) -> float:
        """One number for one answer; margins are clipped to `clip` nats first.

        The result lies in [-clip, clip], with `lexicographic` in [-2 clip, clip]: an answer that breaks a hard
        principle by at least the tie band ends below every answer that breaks none.

        >>> Aggregation(method="lexicographic").reward([Weighed(-1.0, is_hard=True), Weighed(3.0)], clip=3.0)
        -4.0
        """
        found = _clipped(found, clip)
        if self.method == "min":
            return min(one.margin for one in found)
        if self.method == "lexicographic":
            worst = min((one.margin for one in found if one.is_hard), default=0.0)
            if worst < 0 and -worst >= self.tie_band:
                return worst - clip
            return _mean([one for one in found if not one.is_hard] or found)
        return _mean(found, by_weight=self.method == "weighted")

    def preference(self, found: Sequence[Weighed], *, clip: float) -> float:
        """One margin for the first of two answers over the second; swapping the two changes its sign.

        `min`: the mean of the two extreme margins, the one most in favour of the first answer and the one most in
        favour of the second. `lexicographic`: only the hard principles, unless they tie together.
        """
        found = _clipped(found, clip)
        if self.method == "min":
            margins = [one.margin for one in found]
            return (min(margins) + max(margins)) / 2
        if self.method == "lexicographic":
            hard = [one for one in found if one.is_hard]
            if hard and abs(decided := _mean(hard)) >= self.tie_band and decided:
                return decided
            return _mean([one for one in found if not one.is_hard] or found)
        return _mean(found, by_weight=self.method == "weighted")


class PrincipleSampling(Section):
    """Which of the applicable principles are asked about a group of answers."""

    mode: Literal["all", "one_random", "k_random"] = "all"
    k: int | None = Field(None, ge=1)
    """Number of principles; for `k_random`."""
    seed_scope: Literal["prompt", "group"] = "group"
    """`prompt`: a prompt always gets the same principles. `group`: each epoch draws again."""

    @model_validator(mode="after")
    def _k_goes_with_k_random(self) -> Self:
        if (self.k is not None) != (self.mode == "k_random"):
            raise ValueError(f"mode {self.mode!r} with k = {self.k}: k goes with `k_random`, and it needs one")
        return self

    def draw(self, principle_ids: Sequence[str], *, prompt_id: str, ordinal: int) -> frozenset[str]:
        """The ids of the drawn principles; the same ones for the same prompt and group."""
        number = {"all": len(principle_ids), "one_random": 1}.get(self.mode, self.k or 1)
        if number >= len(principle_ids):
            return frozenset(principle_ids)
        seed = prompt_id if self.seed_scope == "prompt" else f"{prompt_id}:{ordinal}"
        return frozenset(random.Random(seed).sample(list(principle_ids), number))


def _clipped(found: Sequence[Weighed], clip: float) -> list[Weighed]:
    assert found, "no principle was asked about"
    return [Weighed(max(-clip, min(clip, one.margin)), one.weight, one.is_hard) for one in found]


def _mean(found: Sequence[Weighed], *, by_weight: bool = True) -> float:
    weights = [one.weight if by_weight else 1.0 for one in found]
    return sum(w * one.margin for w, one in zip(weights, found, strict=True)) / sum(weights)
