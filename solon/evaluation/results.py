"""The result of an evaluation: figures of every policy, and their changes from the first one.

P prompts, S answers to each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solon.evaluation.attacks import source_of
from solon.evaluation.comparison import by_principle, change, mean, win_rate
from solon.evaluation.degenerate import degenerate, distinct_pairs
from solon.records import Prompt

KINDS = ("empty", "repeats", "copies")
"""Of degenerate answers."""
BASE = "none"
"""`attack:none` is what other attacks are compared with."""
Places = NDArray[np.int64]


@dataclass(slots=True)
class Answered:
    """A policy's answers and their scores."""

    model: str
    answers_PS: list[list[str]]
    scores_P: list[dict[str, float]] = field(default_factory=list)
    """Share of the answers to each prompt that keep each principle; empty where the judge gave no valid verdict."""
    margins_P: list[float | None] = field(default_factory=list)
    """Log-odds that the first answer is better than the first policy's."""

    @property
    def judged(self) -> float:
        """Share of the prompts with a score."""
        return sum(bool(one) for one in self.scores_P) / len(self.scores_P) if self.scores_P else 0.0


def results(
    found: Sequence[Answered], prompts: Sequence[Prompt], *, samples: int, tie: float, by: str = ""
) -> dict[str, Any]:
    """Figures of the policies. tie: nats of a margin below which no answer is preferred. by: also the figures of the
    prompts under each tag `by:…`. Prompts of one source (tag `source:…`) are resampled together."""
    first, groups = found[0], tagged(prompts, by) if by else {}
    clusters_P = [source_of(prompt) for prompt in prompts]
    policies = []
    for one in found:
        row = _figures(one, prompts, clusters_P, most=_fewest_pairs(found))
        if one is not first:
            row |= _changes(first, one, clusters_P, tie=tie)
        if by:
            row["by"] = {
                tag: _by_tag(first, one, prompts, clusters_P, places, groups.get(f"{by}:{BASE}"))
                for tag, places in groups.items()
            }
        policies.append(row)
    return {"prompts": len(prompts), "samples": samples, "policies": policies}


def tagged(prompts: Sequence[Prompt], prefix: str) -> dict[str, Places]:
    """Indices of the prompts under each tag that begins with `prefix:`, in the order of their first prompts."""
    places: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        for tag in prompt.tags:
            if tag.startswith(f"{prefix}:"):
                places.setdefault(tag, []).append(number)
    return {tag: np.array(found) for tag, found in places.items()}


def mean_of(scores_P: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """Mean over the principles that apply to each prompt; NaN where none does."""
    return np.array([sum(one.values()) / len(one) if one else float("nan") for one in scores_P])


def _figures(one: Answered, prompts: Sequence[Prompt], clusters_P: Sequence[str], *, most: int) -> dict[str, Any]:
    flat = [answer for answers in one.answers_PS for answer in answers]
    return {
        "model": one.model,
        "judged": one.judged,
        "scores": {name: asdict(mean(values, clusters_P)) for name, values in by_principle(one.scores_P).items()},
        "mean": asdict(mean(mean_of(one.scores_P), clusters_P)),
        "degenerate": _degenerate(one, prompts, range(len(prompts))),
        "words": sum(len(answer.split()) for answer in flat) / len(flat),
        "distinct_2": distinct_pairs(flat, most=most),
    }


def _changes(first: Answered, one: Answered, clusters_P: Sequence[str], *, tie: float) -> dict[str, Any]:
    base, scores = by_principle(first.scores_P), by_principle(one.scores_P)
    row: dict[str, Any] = {
        "change": {
            name: asdict(change(base[name], values, clusters_P)) for name, values in scores.items() if name in base
        },
        "mean_change": asdict(change(mean_of(first.scores_P), mean_of(one.scores_P), clusters_P)),
    }
    if one.margins_P:
        row["wins"] = asdict(win_rate(one.margins_P, tie=tie))
    return row


def _by_tag(
    first: Answered,
    one: Answered,
    prompts: Sequence[Prompt],
    clusters_P: Sequence[str],
    places: Places,
    base: Places | None,
) -> dict[str, Any]:
    """Figures of the prompts under a tag. base: the prompts under `…:none`."""
    before_P, after_P = mean_of(first.scores_P), mean_of(one.scores_P)
    sources = [clusters_P[place] for place in places]
    row: dict[str, Any] = {
        "mean": asdict(mean(after_P[places], sources)),
        "scores": {
            name: asdict(mean(values[places], sources))
            for name, values in by_principle(one.scores_P).items()
            if not np.isnan(values[places]).all()
        },
        "degenerate": sum(_degenerate(one, prompts, places).values()),
    }
    if one is not first:
        row["change"] = asdict(change(before_P[places], after_P[places], sources))
    if base is not None and not np.array_equal(base, places):
        plain = {clusters_P[place]: after_P[place] for place in base}
        paired = np.array([plain.get(source, np.nan) for source in sources])
        row["from_none"] = asdict(change(paired, after_P[places], sources))
    return row


def _degenerate(one: Answered, prompts: Sequence[Prompt], places: Sequence[int] | Places) -> dict[str, float]:
    """Shares of the answers. An answer that copies an earlier turn copies too."""
    kinds: Counter[str] = Counter(
        degenerate(answer, " ".join(message.content for message in prompts[place].messages))
        for place in places
        for answer in one.answers_PS[place]
    )
    total = max(1, kinds.total())
    return {kind: kinds[kind] / total for kind in KINDS}


def _fewest_pairs(found: Sequence[Answered]) -> int:
    return min(
        sum(max(0, len(answer.split()) - 1) for answers in one.answers_PS for answer in answers) for one in found
    )
