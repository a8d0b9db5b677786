"""The model as it is: what copies are compared with, each figure computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compression.flips import damage
from compression.gate.gate import WRITTEN, Figure
from compression.gate.thresholds import Thresholds
from compression.judged import spoilt
from compression.live import LiveModel, load_model
from compression.pairs import Pair, Part, Scores
from compression.request import Request
from compression.roles import ROLES
from solon.engines.tokens import ChatTokenizer
from solon.errors import RunFailedError

MOST_SEARCHED = 256
"""Pairs of a sweep."""


class Original:
    """`Original(request, parts, tokenizer).figures_against(copy)`"""

    def __init__(self, request: Request, parts: Mapping[Part, Sequence[Pair]], tokenizer: ChatTokenizer) -> None:
        self._request, self._gate, self._tokenizer = request, parts["gate"], tokenizer
        self.search = parts["search"][:MOST_SEARCHED]
        self.rules = ROLES[request.role]

    @cached_property
    def live(self) -> LiveModel:
        """In memory, with units that change their formats."""
        return LiveModel.load(self._request.model)

    @cached_property
    def scores(self) -> Scores:
        """Of the pairs of the gate."""
        return self.rules.scores(self.live.model, self._gate)

    @cached_property
    def searched(self) -> Scores:
        """Of the pairs of the sweeps."""
        return self.rules.scores(self.live.model, self.search)

    @cached_property
    def _asked(self) -> list[Pair]:
        """One pair of each prompt whose answer is written."""
        first = {pair.prompt_id: pair for pair in reversed(self._gate)}
        most = self._request.answers if self.rules.writes else 0
        return [first[name] for name in sorted(first)[:most]]

    @cached_property
    def _spoilt(self) -> NDArray[np.float64]:
        return spoilt(self.live.model, self._asked, self._tokenizer)

    def noise(self, limits: Thresholds) -> dict[str, float]:
        """Harm of the model against itself, in another order and batch size. Raises RunFailedError when the gate would
        reject it."""
        backward = self.rules.scores(self.live.model, self._gate[::-1], rows=5)
        again = Scores(
            chosen_P=backward.chosen_P[::-1], rejected_P=backward.rejected_P[::-1], tokens_P=backward.tokens_P[::-1]
        )
        if not (np.isfinite(self.scores.margin_P).all() and np.isfinite(again.margin_P).all()):
            raise RunFailedError("scores of the model are not finite, so nothing can be compared with them")
        noise: dict[str, float] = {}
        for figure in self.rules.figures(self._gate, self.scores, again):
            noise[figure.kind] = max(noise.get(figure.kind, 0.0), abs(float(figure.values_P.mean())))
        for kind, value in noise.items():
            if 2 * value > getattr(limits, kind):
                raise RunFailedError(
                    f"the model does not agree with itself in another order and batch size: {kind} {value:.4f}; use "
                    "float32"
                )
        return noise

    def preference(self) -> dict[str, float]:
        """Of the original on the pairs of the gate: the share in which it prefers the chosen answer, and the mean
        absolute margin, nats."""
        margin_P = self.scores.margin_P
        return {"prefers": float((margin_P > 0).mean()), "margin": float(np.abs(margin_P).mean())}

    def reported(self, after: Scores) -> dict[str, float]:
        """Figures about a copy with these scores that the gate does not use."""
        return {**asdict(damage(self.scores, after)), **self.rules.reported(self.scores, after)}

    def figures_against(self, copy: Path) -> tuple[Scores, list[Figure]]:
        """Scores of the pairs of the gate by a copy on disk, and its harms."""
        model = load_model(copy)
        after = self.rules.scores(model, self._gate)
        figures = self.rules.figures(self._gate, self.scores, after)
        if self._asked:
            figures.append(
                Figure(
                    name=WRITTEN,
                    kind="degenerate",
                    values_P=spoilt(model, self._asked, self._tokenizer) - self._spoilt,
                    prompts_P=tuple(pair.prompt_id for pair in self._asked),
                )
            )
        return after, figures
