"""From labels to preferences and ratings: chosen and rejected in TRL's columns, with the judges' certainty.

A pair's margin is the constitution's aggregation of the principles' calibrated margins; `soft_label` is the probability
that the chosen answer is the better one, `sigmoid(margin)`. A pair with an invalid label has no margin and gives no
preference. Neither does a tie, but it stays in the labels for losses with soft labels. A pair is marked if the judge
contradicts itself under every principle, favouring one answer in one order and the other in the other order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from solon.constitution.constitution import Constitution
from solon.feedback.config import FeedbackConfig
from solon.feedback.labelling.dataset import AnswerRow
from solon.feedback.pairwise import pair_margins
from solon.feedback.reward import rule_of
from solon.records import Feedback, Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """One of two answers of a row is better. `margin` >= 0, in nats."""

    row_id: str
    chosen: int
    rejected: int
    margin: float
    label_ids: tuple[str, ...]
    """The labels behind it, at least one."""
    weight: float = 1.0
    contradicted: bool = False
    """Under every principle the judge was asked in both orders and favoured different answers: the remaining margin is
    smaller than the effect of position."""

    @property
    def soft_label(self) -> float:
        """Probability that the chosen answer is the better one."""
        return 1 / (1 + math.exp(-self.margin))


def preferences(
    row: AnswerRow,
    feedback: Feedback,
    constitution: Constitution,
    config: FeedbackConfig,
    *,
    label_ids: Sequence[str],
    weight: float = 1.0,
) -> list[Preference]:
    """The preferences in the labels of a row; ties and invalid pairs give none.

    label_ids: of the feedback's labels, in their order.
    """
    if config.task == "pairwise":
        margins = _pair_margins(feedback.labels, constitution, config)
    else:
        rewards = feedback.rewards_G
        margins = {
            (i, j): first - second
            for i, first in enumerate(rewards)
            for j, second in enumerate(rewards)
            if i < j and first is not None and second is not None
        }
    found = []
    for (first, second), margin in margins.items():
        if abs(margin) < config.tie_band or row.answers[first] == row.answers[second]:
            continue
        chosen, rejected = (first, second) if margin > 0 else (second, first)
        about = [
            (one, label)
            for one, label in zip(label_ids, feedback.labels, strict=True)
            if {*label.rollouts} <= {first, second}
        ]
        found.append(
            Preference(
                row_id=row.row_id,
                chosen=chosen,
                rejected=rejected,
                margin=abs(margin),
                label_ids=tuple(one for one, _ in about),
                weight=weight,
                contradicted=all(label.verdict.consistent is False for _, label in about),
            )
        )
    return found


def preference_row(row: AnswerRow, preference: Preference) -> dict[str, Any]:
    """The preference in TRL's columns, always as messages: a column has one type, and trainers apply the policy's chat
    template. docs/data.md describes every column."""
    return {
        "prompt": [{"role": m.role, "content": m.content} for m in row.prompt.messages],
        "chosen": [{"role": "assistant", "content": row.answers[preference.chosen]}],
        "rejected": [{"role": "assistant", "content": row.answers[preference.rejected]}],
        "soft_label": preference.soft_label,
        "weight": preference.weight,
        "judge_margin": preference.margin,
        "label_id": preference.label_ids[0],
        "label_ids": list(preference.label_ids),
        "row_id": row.row_id,
    }


def rating_rows(row: AnswerRow, feedback: Feedback, *, weight: float) -> list[dict[str, Any]]:
    """Every answer with a reward, and the probability that it is good: `sigmoid(reward)`. Rewards of comparisons are
    relative to the other answers of the row. docs/data.md describes every column."""
    return [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in row.prompt.messages],
            "completion": [{"role": "assistant", "content": answer}],
            "good": 1 / (1 + math.exp(-reward)),
            "reward": reward,
            "weight": weight,
            "row_id": row.row_id,
        }
        for answer, reward in zip(row.answers, feedback.rewards_G, strict=True)
        if reward is not None
    ]


def _pair_margins(
    labels: Sequence[Label], constitution: Constitution, config: FeedbackConfig
) -> dict[tuple[int, int], float]:
    """Margins of the pairs as for rewards."""
    asked = {label.principle_id for label in labels}
    return pair_margins(
        labels,
        principles=[p for p in constitution.principles if p.id in asked],
        rule=rule_of(constitution, config),
        clip=config.margin_clip,
    )
