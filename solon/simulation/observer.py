"""What a simulated run reports: totals, and a digest of every event with its time."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from solon.events import is_counted
from solon.ledger.ledger import Lease
from solon.protocols import GenerationReport, LabelReport, PayloadRef
from solon.records import LoadReceipt, Span, StepReport
from solon.simulation.virtual_time import VirtualLoop
from solon.telemetry.overlap import Busy

GENERATED, LABELLED, STEPPED, PUBLISHED = range(4)
"""Events by number; others have the checksum of their name."""
FLUSH = 1 << 16
"""Numbers that wait for the digest."""


class Account:
    """An `Observer` that adds up."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._log = array("d")
        self._digest = hashlib.blake2b(digest_size=16)
        self.busy = Busy()
        self.tokens = self.events = self.steps = 0
        self.num_generated = self.num_labelled = 0
        self.staleness: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.publications_s: list[float] = []
        self.ended = bytearray()
        """How often each group was trained or dropped, by ordinal."""

    def generated(self, report: GenerationReport, payload_ref: PayloadRef) -> None:
        """See `Observer`."""
        self.num_generated += 1
        self.tokens += report.num_tokens
        for span in report.spans:
            self.busy.add(span)
        self._note(GENERATED, report.ordinal, report.attempt)

    def labelled(self, report: LabelReport, payload_ref: PayloadRef) -> None:
        """See `Observer`."""
        self.num_labelled += 1
        for span in report.spans:
            self.busy.add(span)
        self._note(LABELLED, report.ordinal, report.attempt)

    def stepped(self, lease: Lease, report: StepReport) -> None:
        """See `Observer`."""
        self.steps += 1
        self.staleness.update(lease.staleness)
        for span in report.spans:
            self.busy.add(span)
        for ordinal in lease.ordinals:
            self._end(ordinal)
        self._note(STEPPED, lease.step, sum(lease.ordinals))

    def published(self, version: int, receipts: Sequence[LoadReceipt], gap: float, span: Span) -> None:
        """See `Observer`."""
        self.publications_s.append(span.end_s - span.start_s)
        self._note(PUBLISHED, version, len(receipts))

    def event(self, name: str, **fields: Any) -> None:
        """See `Observer`."""
        if is_counted(name) or name in ("group_lost", "judge_lost", "group_expired"):
            self.faults[name] += 1
        if name == "group_dropped":
            self._end(fields["ordinal"])
        self._note(crc32(name.encode()), fields.get("ordinal", -1), crc32(str(fields.get("worker", "")).encode()))

    def digest(self) -> str:
        """Of every event so far."""
        self._flush()
        return self._digest.hexdigest()

    def _end(self, ordinal: int) -> None:
        if ordinal >= len(self.ended):
            self.ended.extend(bytes(ordinal + 1024 - len(self.ended)))
        if (times := self.ended[ordinal]) < 255:
            self.ended[ordinal] = times + 1

    def _note(self, kind: int, first: int, second: int) -> None:
        self.events += 1
        self._log.extend((kind, first, second, self._loop.now_s))
        if len(self._log) >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        self._digest.update(self._log.tobytes())
        del self._log[:]
