"""Selects the rows of a data set to label when labels are expensive, with known and recorded probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from solon.constitution.constitution import Constitution
from solon.feedback.config import FeedbackConfig
from solon.feedback.labelling.dataset import AnswerRow
from solon.feedback.labelling.finished import feedback_of, read_labels
from solon.feedback.labelling.preferences import preferences
from solon.feedback.panels.selective import STREAMING
from solon.feedback.selection.policy import Selection, SelectionConfig, plan, select
from solon.feedback.selection.worth import Signals

FILE = "selection.jsonl"


class RowSelection(SelectionConfig):
    """`RowSelection(rate=0.4, policy="near_tie", proxy="org/small-judge")`; with a rate of 1 every row is labelled."""

    rate: float = Field(1.0, gt=0, le=1)
    """Expected share of labelled rows."""
    proxy: str = ""
    """A cheap judge that labels all rows first; rows where it is unsure are worth a label. `random` needs none."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> RowSelection:
        if self.policy not in STREAMING:
            raise ValueError(f"select.policy = {self.policy!r}, expected one of {', '.join(STREAMING)} for rows")
        if self.policy != "random" and self.rate < 1 and not self.proxy:
            raise ValueError(f"select.policy = {self.policy!r} needs select.proxy, the judge whose doubt it goes by")
        return self


def select_rows(
    rows: Sequence[AnswerRow], margins: Mapping[str, float], config: RowSelection, *, seed: int
) -> list[Selection]:
    """One selection per row. margins: the proxy's, by row; a row without a margin is always labelled."""
    if config.policy == "random":
        chances = np.full(len(rows), config.rate)
    else:
        known = [index for index, row in enumerate(rows) if row.row_id in margins]
        chances = np.ones(len(rows))
        if known:
            found = np.array([[margins[rows[index].row_id] for index in known]])
            chances[known] = plan(Signals(num=len(known), margins_KN=found), config).propensities_N
    return select([row.row_id for row in rows], chances, config, seed=seed)


def proxy_margins(
    directory: Path, rows: Sequence[AnswerRow], constitution: Constitution, config: FeedbackConfig
) -> dict[str, float]:
    """The closest pair of each row that a proxy labelled into a directory; ties count as 0."""
    by_id = {row.row_id: row for row in rows}
    margins: dict[str, float] = {}
    for done in read_labels(directory):
        labels = done.labels
        if (row := by_id.get(done.row_id)) is not None and all(label.status.valid for label in labels):
            feedback = feedback_of(row, labels, config, constitution)
            found = preferences(row, feedback, constitution, config, label_ids=done.label_ids)
            pairs = len(labels) and len({label.rollouts for label in labels})
            margins[row.row_id] = 0.0 if len(found) < pairs else min((p.margin for p in found), default=0.0)
    return margins


def write_selection(directory: Path, found: Sequence[Selection]) -> None:
    """One line per row, selected or not: the basis of weights and estimates."""
    path = directory / FILE
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(asdict(one)) + "\n" for one in found), encoding="utf-8")
    scratch.replace(path)
