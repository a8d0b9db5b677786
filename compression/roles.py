"""How a compression scores a model, which depends on what the model is used as.

    policy, critic   log-probs of whole answers; what it writes is looked at too
    judge            log-probs of the labels of its own questions
    reward_model     rewards of whole answers, in the units of its margins in a run

A critic writes critiques and is held to a judge's thresholds. P pairs, C prompts, R rows of a batch, T positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compression.flips import BETA
from compression.gate.gate import Figure, figures_of
from compression.gate.thresholds import Role
from compression.pairs import ROWS, Pair, Scores, Tokens, laid_out, scores_of
from solon.feedback.judges.reward_judge import centre_of

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float64]


class Scoring(Protocol):
    """`scores_of` or `rewards_of`."""

    def __call__(self, model: nn.Module, pairs: Sequence[Pair], *, rows: int = ROWS) -> Scores:
        """rows: sequences of one forward pass; it changes results only by rounding."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is measured of a model in a role."""

    scores: Scoring = scores_of
    figures: Callable[[Sequence[Pair], Scores, Scores], list[Figure]] = figures_of
    reported: Callable[[Scores, Scores], dict[str, float]] = lambda *_: {}
    """Further figures, which the gate does not compare with a threshold."""
    writes: bool = False
    """Its answers are searched for repetition."""
    learns: bool = True
    """It may be trained on the grid, and after pruning: its tokens are learned from the original."""


def rewards_of(model: nn.Module, pairs: Sequence[Pair], *, rows: int = ROWS) -> Scores:
    """Rewards of whole conversations, scaled so that a margin times BETA is the margin of a run. The model writes
    nothing, so no tokens are counted."""
    asked = list(dict.fromkeys((pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)))
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i][0]) + len(asked[i][1]), i))
    found = np.zeros(len(asked))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        found[chosen] = _rewards(model, [asked[i] for i in chosen])
    config: Any = model.config
    centre = centre_of(config.to_dict(), str(config.name_or_path))
    values = (found - centre.shifts[0]) * centre.scale / BETA
    by_answer = dict(zip(asked, values.tolist(), strict=True))
    return Scores(
        chosen_P=np.array([by_answer[pair.prompt, pair.chosen] for pair in pairs]),
        rejected_P=np.array([by_answer[pair.prompt, pair.rejected] for pair in pairs]),
        tokens_P=np.zeros(len(pairs)),
    )


def reward_figures(pairs: Sequence[Pair], before: Scores, after: Scores) -> list[Figure]:
    """Figures about preferences, and the order of all answers of a prompt."""
    shares_C, prompts_C = reordered(pairs, before, after)
    order = Figure(name="order of a prompt's answers", kind="order", values_P=shares_C, prompts_P=prompts_C)
    return [*figures_of(pairs, before, after), order]


def reordered(pairs: Sequence[Pair], before: Scores, after: Scores) -> tuple[Floats, tuple[str, ...]]:
    """Of each prompt the share of pairs of its answers that are ranked the other way round: (1 - Kendall's tau) / 2.
    [C], and the prompts. A tie on one side counts half."""
    answers: dict[str, dict[Tokens, tuple[float, float]]] = {}
    for pair, *rewards in zip(pairs, before.chosen_P, after.chosen_P, before.rejected_P, after.rejected_P, strict=True):
        of_prompt = answers.setdefault(pair.prompt_id, {})
        of_prompt[pair.chosen], of_prompt[pair.rejected] = (rewards[0], rewards[1]), (rewards[2], rewards[3])
    shares = {
        prompt: float(
            np.mean([
                abs(np.sign(one[0] - other[0]) - np.sign(one[1] - other[1])) / 2
                for one, other in itertools.combinations(rewards.values(), 2)
            ])
        )
        for prompt, rewards in answers.items()
        if len(rewards) > 1
    }  # fmt: skip
    return np.array(list(shares.values())), tuple(shares)


def reward_shift(before: Scores, after: Scores) -> dict[str, float]:
    """How far the mean reward moved, in standard deviations of the original's rewards."""
    was, now = (np.concatenate([one.chosen_P, one.rejected_P]) for one in (before, after))
    return {"reward_shift": float((now.mean() - was.mean()) / max(1e-12, was.std()))}


def _rewards(model: Any, rows: Sequence[tuple[Tokens, Tokens]]) -> Floats:
    """As the feedback reads them: at the true last token, whatever the padding. [R]"""
    import torch

    ids_RT, mask_RT, _ = laid_out(rows)
    last_R = mask_RT.sum(1) - 1
    with torch.no_grad():
        hidden_RTH = model.base_model(input_ids=ids_RT, attention_mask=mask_RT, use_cache=False)[0]
        found: Floats = model.score(hidden_RTH[torch.arange(len(last_R)), last_R])[:, 0].double().numpy()
    return found


ROLES: dict[Role, Rules] = {
    "policy": Rules(writes=True),
    "critic": Rules(writes=True),
    "judge": Rules(figures=partial(figures_of, beta=1.0)),  # its margins are log-odds
    "reward_model": Rules(scores=rewards_of, figures=reward_figures, reported=reward_shift, learns=False),
}
