"""Labels a whole data set; can be stopped and resumed at any moment.

    rows ──▶ labeler (many at once) ──▶ labels/part-*.parquet ──▶ preferences.jsonl, ratings.jsonl, summary.json

The parts record the progress: each is written atomically, and a row in a part is never judged again. A row in progress
when the process died is labelled again; with a cache on disk this costs no forward pass. The preferences are written
from the parts at the end, so they do not depend on interruptions.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from solon.constitution.constitution import Constitution
from solon.errors import first_cause
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Judge
from solon.feedback.labeler import Labeler
from solon.feedback.labelling.budget import UNLIMITED, Budget, Purse
from solon.feedback.labelling.dataset import AnswerRow, SkippedRow
from solon.feedback.labelling.finished import feedback_of, finished_rows, read_labels
from solon.feedback.labelling.label_summary import Summary
from solon.feedback.labelling.preferences import Preference, preference_row, preferences, rating_rows
from solon.feedback.labelling.remedies import why_nothing
from solon.records import Feedback, Label
from solon.runs.directory import RunDirectory
from solon.runs.quarantine import Quarantine
from solon.runs.tables import label_rows
from solon.verdicts import Status, Verdict

ROWS_AT_ONCE = 96
"""Concurrent rows: enough to fill the engine's batches."""
ROWS_PER_PART = 512
SECONDS_PER_PART = 20.0
HOPELESS_LABELS = 256
"""If none of this many first labels has a verdict, the run stops asking."""


@dataclass(slots=True)
class Progress:
    """Progress of a run; passed to the run's `on_change`."""

    rows_total: int
    rows_before: int
    """Rows finished by earlier starts."""
    rows: int = 0
    labels: int = 0
    invalid: int = 0
    usd: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since this start began."""
        return time.monotonic() - self.started_s

    @property
    def labels_per_s(self) -> float:
        """Labels of this start per second."""
        return self.labels / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Expected seconds until the last row; None while unknown."""
        left = self.rows_total - self.rows_before - self.rows
        return left * self.elapsed_s / self.rows if self.rows else None


class LabelRun:
    """`summary = await LabelRun(directory, judge, …).run(rows)`; `stop()` ends it after the rows in progress."""

    def __init__(
        self,
        directory: RunDirectory,
        judge: Judge,
        *,
        config: FeedbackConfig,
        constitution: Constitution,
        provenance: Mapping[str, Any],
        budget: Budget = UNLIMITED,
        weights: Mapping[str, float] | None = None,
        on_change: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._directory = directory
        self._labeler = Labeler(judge, config=config, constitution=constitution)
        self._config = config
        self._constitution = constitution
        self._provenance = provenance
        self._purse = Purse(budget)
        self._weights = weights or {}
        # The input rows are checked again at every start, their labels are not.
        self._quarantine = Quarantine(directory, reread=("rows",))
        self._on_change = on_change
        self._stopping = False
        self._refusal = ""
        """Why a label was not asked for lack of budget."""
        self._pending: list[dict[str, Any]] = []
        self._pending_rows = 0
        self._written_s = time.monotonic()

    def stop(self) -> None:
        """Take no further rows; rows in progress are finished and written."""
        self._stopping = True

    async def run(self, rows: Sequence[AnswerRow], skipped: Sequence[SkippedRow] = ()) -> dict[str, Any]:
        """Label all remaining rows and write the preferences; returns the summary.

        Raises RunFailedError when the judge is lost; labels finished until then are written.
        """
        done = finished_rows(self._directory.path)
        todo = [row for row in rows if row.row_id not in done]
        progress = Progress(rows_total=len(rows), rows_before=len(rows) - len(todo))
        self._on_change(progress)
        try:
            await self._label_all(todo, progress)
        except BaseException:
            self._flush()
            self._directory.close()  # the next start may then continue immediately
            raise
        self._flush()
        return self._finish(rows, skipped, progress)

    async def _label_all(self, todo: Sequence[AnswerRow], progress: Progress) -> None:
        waiting = iter(todo)

        async def work() -> None:
            for row in waiting:
                group = row.as_group()
                num = self._labeler.num_labels(group)
                if self._is_over(progress) or not await self._purse.take(num) or self._is_over(progress):
                    return
                self._keep(row, await self._labeler.label(group), progress, reserved=num)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(ROWS_AT_ONCE, len(todo))):
                    group.create_task(work())
        except ExceptionGroup as failures:
            raise first_cause(failures) from None

    def _is_over(self, progress: Progress) -> bool:
        """Whether no further rows are taken."""
        is_hopeless = progress.labels >= HOPELESS_LABELS and progress.invalid == progress.labels
        return self._stopping or bool(self._refusal) or is_hopeless

    def _keep(self, row: AnswerRow, feedback: Feedback, progress: Progress, *, reserved: int) -> None:
        progress.usd += sum(label.verdict.usd for label in feedback.labels)
        skipped = [label.verdict.detail for label in feedback.labels if label.status is Status.BUDGET_SKIP]
        self._purse.settle(reserved, feedback.labels, is_kept=not skipped)
        if skipped:
            # Not asked: the row stays open, and its answered questions are in the cache.
            self._refusal = skipped[0] or "the judge's budget is spent"
            return
        for label in feedback.labels:
            if not label.status.valid:
                said = label.verdict.detail or row.answers[label.rollouts[0]]
                self._quarantine.add(stage="labels", reason=str(label.status), line=row.number, excerpt=said)
        mark = {"row_id": row.row_id, "weight": self._weights.get(row.row_id, 1.0)}
        found = label_rows(feedback, {**self._provenance, **mark}, subject=row.row_id)
        self._pending += found or [_no_label(row, self._provenance, mark)]
        self._pending_rows += 1
        progress.rows += 1
        progress.labels += len(feedback.labels)
        progress.invalid += sum(not label.status.valid for label in feedback.labels)
        if self._pending_rows >= ROWS_PER_PART or time.monotonic() - self._written_s > SECONDS_PER_PART:
            self._flush()
        self._on_change(progress)

    def _flush(self) -> None:
        rows, self._pending, self._pending_rows = self._pending, [], 0
        self._written_s = time.monotonic()
        self._directory.write_rows("labels", rows)

    def _finish(self, rows: Sequence[AnswerRow], skipped: Sequence[SkippedRow], progress: Progress) -> dict[str, Any]:
        by_id = {row.row_id: row for row in rows}
        summary = Summary()
        found: list[tuple[AnswerRow, Preference]] = []
        ratings: list[tuple[int, list[dict[str, Any]]]] = []
        contradicted = 0
        for done in read_labels(self._directory.path):
            if (row := by_id.get(done.row_id)) is None:
                continue  # the file has changed since
            feedback = feedback_of(row, done.labels, self._config, self._constitution)
            preferred = preferences(
                row,
                feedback,
                self._constitution,
                self._config,
                label_ids=done.label_ids,
                weight=done.weight,
            )
            kept = [one for one in preferred if not one.contradicted or self._config.swap.contradicted == "keep"]
            contradicted += len(preferred) - len(kept)
            summary.add(done.labels, kept)
            found += [(row, preference) for preference in kept]
            ratings.append((row.number, rating_rows(row, feedback, weight=done.weight)))
        order = sorted(found, key=lambda pair: (pair[0].number, pair[1].chosen, pair[1].rejected))
        self._write_lines("preferences.jsonl", [preference_row(row, preference) for row, preference in order])
        self._write_lines("ratings.jsonl", [row for _, rated in sorted(ratings, key=itemgetter(0)) for row in rated])
        for one in skipped:
            self._quarantine.add(stage="rows", reason=one.reason, line=one.number, excerpt=one.excerpt)
        self._quarantine.close()
        left = len(rows) - progress.rows_before - progress.rows
        refusal = self._refusal or self._purse.refusal
        failure = ""
        if not self._stopping and len(rows) > 0 and not summary.valid:
            failure = why_nothing(
                summary.statuses, refusal=refusal, detail=summary.detail, template=self._config.template
            )
        status = "completed"
        if left or failure:
            status = "stopped" if self._stopping else "budget" if refusal else "failed"
        warning = summary.position.warning()
        result = {
            "status": status,
            **({"warnings": [warning]} if warning else {}),
            **({"failure": failure} if failure else {}),
            **({"budget": refusal} if refusal and left else {}),
            "rows": {"total": len(rows), "done": len(rows) - left, "left": left, "skipped": len(skipped)},
            "preferences": len(found),
            "contradicted": contradicted,
            **summary.to_dict(),
            "quarantine": self._quarantine.summary(),
            "this_start": {
                "rows": progress.rows,
                "labels": progress.labels,
                "seconds": progress.elapsed_s,
                "labels_per_s": progress.labels_per_s,
                "usd": progress.usd,
            },
        }
        self._directory.write_json("summary.json", result)
        return result

    def _write_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self._directory.path / name
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        scratch.replace(path)


def _no_label(row: AnswerRow, provenance: Mapping[str, Any], mark: Mapping[str, Any]) -> dict[str, Any]:
    """A row without applicable principles is finished, too: it gets a line without a label."""
    like = Feedback(
        ordinal=row.number,
        attempt=0,
        rewards_G=(None,),
        labels=(
            Label(
                task="pointwise", principle_id="", rollouts=(0,), verdict=Verdict(status=Status.ABSTAIN, margin=None)
            ),
        ),
    )
    (line,) = label_rows(like, {**provenance, **mark}, subject=row.row_id)
    return {**line, "task": None, "status": "no_principle_applies"}
