"""Records a run in its own thread, so that no stage waits for a disk.

It is the loop's observer. The rows of a group are written as soon as it is generated or labelled (batched by step), so
that a stopped or failed run has lost no result. The outcome of a rollout, its reward, advantage and step, is filled
into its row when it is known (solon.runs.outcomes).

Rows that wait to be written keep their payload in memory. `on_backlog` reports these bytes, so that a run generates no
faster than its disk can write (`AsyncLedger.hold_back`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from solon.errors import PayloadLostError
from solon.events import event_line
from solon.ledger.ledger import Grant, Lease, Work
from solon.protocols import GenerationReport, LabelReport, PayloadRef
from solon.records import Feedback, Group, LoadReceipt, Span, StepReport
from solon.runs.directory import DiskFullError, RunDirectory
from solon.runs.integrity import REREAD_STAGES, Records
from solon.runs.outcomes import Outcomes
from solon.runs.quarantine import Quarantine
from solon.runs.tables import audit_rows, label_rows, rollout_rows
from solon.telemetry.exports import RunExports
from solon.telemetry.totals import RunTotals
from solon.telemetry.trace import TraceFile

ROWS_PER_PART = 4096


class Recorder:
    """`open_payload` opens a payload (on Ray: fetches it). `on_failure` is called once, from the writing thread;
    `on_backlog` with the bytes of all payloads that wait to be written, whenever they change, from any thread."""

    def __init__(
        self,
        directory: RunDirectory,
        totals: RunTotals,
        *,
        open_payload: Callable[[PayloadRef], Any],
        provenance: dict[str, Any],
        on_failure: Callable[[Exception], None],
        on_change: Callable[[str], None] = lambda _: None,
        on_backlog: Callable[[int], None] = lambda _: None,
        exports: RunExports | None = None,
    ) -> None:
        """exports: is told everything too, after the totals."""
        self._directory = directory
        directory.keeps_part_digests = True
        self.totals = totals
        self.quarantine = Quarantine(directory, reread=REREAD_STAGES)
        """Refused input; every start reads the prompts again."""
        self._open_payload = open_payload
        self._provenance = provenance
        self._on_failure = on_failure
        self._on_change = on_change
        self._on_backlog = on_backlog
        self._exports = exports
        self._backlog = 0
        self._counting = threading.Lock()
        self.failure: Exception | None = None
        self._has_lost = False
        """Some data could not be written."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._rollouts: list[dict[str, Any]] = []
        self._labels: list[dict[str, Any]] = []
        self._outcomes = Outcomes(directory)
        self._born_ns = time.time_ns()
        self._trace = TraceFile(directory)
        self._thread = threading.Thread(target=self._work, name="solon-recorder", daemon=True)
        self._thread.start()

    def granted(self, holder: str, grants: Sequence[Grant]) -> None:
        """Note that an engine was given these groups."""
        self.totals.groups.granted(holder, grants)
        if self._exports is not None:
            self._exports.granted(holder, grants)

    def taken(self, holder: str, work: Sequence[Work]) -> None:
        """Note that a judge took these groups."""
        self.totals.groups.taken(holder, work)

    # -- the loop's observer -------------------------------------------------------------------------------------

    def generated(self, report: GenerationReport, payload_ref: PayloadRef) -> None:
        """Count a generated group; its rows are written in the background."""
        self.totals.generated(report)
        if self._exports is not None:
            self._exports.generated(report, payload_ref)
        self._keep_spans(report.spans)
        keep = self._keep_rollouts
        self._put_payload(
            report.nbytes, lambda: self._opened(payload_ref, keep, "rollouts", report.ordinal, report.attempt)
        )

    def labelled(self, report: LabelReport, payload_ref: PayloadRef) -> None:
        """Count a labelled group; its rows are written in the background."""
        self.totals.labelled(report)
        if self._exports is not None:
            self._exports.labelled(report, payload_ref)
        self._keep_spans(report.spans)
        keep = self._keep_labels
        self._put_payload(
            report.nbytes, lambda: self._opened(payload_ref, keep, "labels", report.ordinal, report.attempt)
        )

    def stepped(self, lease: Lease, report: StepReport) -> None:
        """Write the line of a committed step, and warn when it moved nothing or its answers were cut."""
        record = self.totals.stepped(lease, report)
        if self._exports is not None:
            self._exports.stepped(lease, report)
        self._keep_spans(report.spans)
        self._keep_groups(self.totals.groups.trained(lease))
        self._jobs.put(lambda: self._write_step(record, lease, report))
        self._on_change("step")
        movement = self.totals.movement
        if movement.cause:
            self.event("nothing_moved", step=lease.step, cause=movement.cause)
        elif movement.cut:
            self.event("answers_cut", step=lease.step, cause=movement.cut)

    def published(self, version: int, receipts: Sequence[LoadReceipt], gap: float, span: Span) -> None:
        """Record that a version is attested on every engine. gap: largest canary difference so far, nats."""
        self.totals.published(version, receipts, gap, span)
        if self._exports is not None:
            self._exports.published(version, receipts, gap, span)
        self._keep_spans((span,))
        self.event(
            "published",
            version=version,
            engines=[r.engine for r in receipts],
            pause_s=max((r.pause_s for r in receipts), default=0.0),
            max_logprob_gap=gap,
            mean_logprob_gap=max((r.mean_gap for r in receipts), default=0.0),
        )

    def event(self, name: str, **fields: Any) -> None:
        """Write a line of events.jsonl. Raises AssertionError for an event or a field that solon.events lacks."""
        record = event_line(name, time_s=time.time(), **fields)
        self.totals.fault(name, fields)
        if self._exports is not None:
            self._exports.event(name, **fields)
        if name == "group_dropped":
            self.totals.last_drop = str(record.get("reason", ""))
            self._keep_groups([self.totals.groups.dropped(fields["ordinal"], self.totals.last_drop)])
        self._jobs.put(lambda: self._write_event(record))
        self._on_change(f"{name} {fields['worker']}" if "worker" in fields else name)

    def audited(self, group: Group, rollouts: tuple[int, ...], proxy: Feedback, gold: Feedback) -> None:
        """Write a line of audits.jsonl for each audited rollout. gold: feedback on these rollouts alone."""
        rows = audit_rows(group, rollouts, proxy, gold)
        self._jobs.put(lambda: self._directory.append_all("audits.jsonl", rows))

    def write(self, name: str, value: Any) -> None:
        """A whole JSON file of the run directory."""
        self._jobs.put(lambda: _ignore(self._directory.write_json(name, value)))

    def _put_payload(self, nbytes: int, job: Callable[[], None]) -> None:
        """A job that keeps a payload of this size until it is done."""
        self._count(nbytes)

        def counted() -> None:
            try:
                job()
            finally:
                self._count(-nbytes)

        self._jobs.put(counted)

    def _count(self, nbytes: int) -> None:
        with self._counting:
            self._backlog += nbytes
            with suppress(RuntimeError):  # an event loop that has ended admits nothing anyway
                self._on_backlog(self._backlog)

    def _keep_groups(self, lines: Sequence[dict[str, Any]]) -> None:
        self._jobs.put(lambda: self._directory.append_all("groups.jsonl", lines))

    def _keep_spans(self, spans: Sequence[Span]) -> None:
        if spans:
            self._jobs.put(lambda: self._trace.add(spans))

    def sync(self) -> Records:
        """Wait until all rows so far are on disk; returns the extent of the files.

        Raises the writer's error, unless all rows were still written, into the ballast of a full disk.
        """
        done = threading.Event()
        found: list[Records] = []
        self._jobs.put(lambda: self._sync(done, found))
        done.wait()
        if self.failure is not None and (self._has_lost or not found):
            raise self.failure
        return found[0]

    def close(self) -> None:
        """Write the rest and wait for it. Raises the writing thread's error, if any."""
        self._jobs.put(None)
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    # -- the writing thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._try(job)
            del job  # or its payload would stay in memory until the next one
        self._try(self._flush_all)
        self._try(self._trace.close)
        self._try(self.quarantine.close)

    def _try(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._has_lost |= not (isinstance(error, DiskFullError) and error.is_written)
            if self.failure is None:
                self.failure = error
                # The callback may fail at the end of a run; the rest is still written.
                with suppress(Exception):
                    self._on_failure(error)

    def _sync(self, done: threading.Event, found: list[Records]) -> None:
        try:
            with ExitStack() as last_first:
                last_first.callback(lambda: found.append(self._directory.sync()))
                self._flush_all()
        finally:
            done.set()

    def _opened(
        self, payload_ref: PayloadRef, keep: Callable[[Any], None], table: str, ordinal: int, attempt: int
    ) -> None:
        """Open a payload and keep its rows. If its machine is gone, write a `rows_lost` event."""
        try:
            payload = self._open_payload(payload_ref)
        except PayloadLostError as error:
            where = {"table": table, "ordinal": ordinal, "attempt": attempt}
            line = event_line("rows_lost", time_s=time.time(), **where, cause=str(error))
            self._directory.append("events.jsonl", line)
            return
        keep(payload)

    def _keep_rollouts(self, group: Group) -> None:
        self._rollouts += rollout_rows(group)
        self._flush_when_large()

    def _keep_labels(self, feedback: Feedback) -> None:
        for label in feedback.labels:
            if not label.status.valid:
                reason = str(label.status)
                self.quarantine.add(
                    stage="labels", reason=reason, ordinal=feedback.ordinal, excerpt=label.verdict.detail
                )
        self._outcomes.labelled((feedback.ordinal, feedback.attempt), feedback.rewards_G)
        # A group that is generated again after a resume has the same numbers, and other labels.
        subject = f"{feedback.ordinal}:{feedback.attempt}:{self._born_ns}"
        self._labels += label_rows(feedback, self._provenance, subject=subject)
        self._flush_when_large()

    def _flush_when_large(self) -> None:
        if len(self._rollouts) + len(self._labels) >= ROWS_PER_PART:
            self._flush()

    def _write_step(self, record: dict[str, Any], lease: Lease, report: StepReport) -> None:
        self._outcomes.trained(report.step, report.groups)
        self._outcomes.settle(lease.ordinals)
        try:
            self._flush()  # a step on record has its rollouts on disk
            self._fill()
        finally:
            self._directory.append("metrics.jsonl", record)

    def _write_event(self, record: dict[str, Any]) -> None:
        if record["event"] == "group_dropped":
            self._outcomes.settle([record["ordinal"]])
        self._trace.mark(record)
        self._directory.append("events.jsonl", record)

    def _write_rollouts(self, rows: list[dict[str, Any]]) -> None:
        rows = self._outcomes.complete(rows)
        path = self._directory.write_rows("rollouts", rows)
        if path is not None:
            self._outcomes.written(path, rows)

    def _fill(self, *, everything: bool = False) -> None:
        for problem in self._outcomes.fill(everything=everything):
            line = event_line("rows_unreadable", time_s=time.time(), table="rollouts", cause=problem)
            self._directory.append("events.jsonl", line)

    def _flush_all(self) -> None:
        self._flush()
        self._fill(everything=True)

    def _flush(self) -> None:
        # Taken out before writing: on a full disk the directory itself writes them a second time.
        rollouts, self._rollouts = self._rollouts, []
        labels, self._labels = self._labels, []
        with ExitStack() as last_first:  # all three are tried, even if one fails
            last_first.callback(self._trace.write)
            last_first.callback(self._directory.write_rows, "labels", labels)
            last_first.callback(self._write_rollouts, rollouts)


def _ignore(_: object) -> None:
    """Turns a function that returns a value into a job."""
