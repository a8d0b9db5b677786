"""Reads the labelled rows from the parts of a labelling run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solon.constitution.constitution import Constitution
from solon.feedback.config import FeedbackConfig
from solon.feedback.labelling.dataset import AnswerRow
from solon.feedback.reward import rewards
from solon.records import Feedback, Label
from solon.runs.label_records import nested
from solon.verdicts import Status, Verdict


def finished_rows(path: Path) -> set[str]:
    """Ids of the rows in the parts of a run."""
    import pyarrow.parquet as pq

    done: set[str] = set()
    for part in sorted((path / "labels").glob("part-*.parquet")):
        done.update(pq.read_table(part, columns=["row_id"])["row_id"].to_pylist())
    return done


@dataclass(slots=True)
class LabelledRow:
    """A finished row in the parts."""

    row_id: str
    weight: float
    labels: list[Label] = field(default_factory=list)
    label_ids: list[str] = field(default_factory=list)
    """Ids of the labels, in their order."""


def read_labels(path: Path) -> list[LabelledRow]:
    """Every finished row."""
    import pyarrow.parquet as pq

    rows: dict[str, LabelledRow] = {}
    for part in sorted((path / "labels").glob("part-*.parquet")):
        for record in pq.read_table(part).to_pylist():
            row = rows.setdefault(record["row_id"], LabelledRow(record["row_id"], float(record["weight"])))
            if record["task"] is not None:
                row.labels.append(_label(record))
                row.label_ids.append(record["label_id"])
    return list(rows.values())


def _label(record: Mapping[str, Any]) -> Label:
    lists = {name: tuple(record[name]) for name in ("rollouts", "prompt_digests")}
    known = nested({**record, **lists, "status": Status(record["status"])})
    return Label(**known | {"verdict": Verdict(**known["verdict"])})


def feedback_of(
    row: AnswerRow, labels: Sequence[Label], config: FeedbackConfig, constitution: Constitution
) -> Feedback:
    """The rewards of a row, recomputed from its labels."""
    asked = {label.principle_id for label in labels}
    return Feedback(
        ordinal=row.number,
        attempt=0,
        rewards_G=rewards(
            labels,
            num_rollouts=len(row.answers),
            principles=[p for p in constitution.principles if p.id in asked],
            constitution=constitution,
            config=config,
        ),
        labels=tuple(labels),
    )
