"""Label records of a service: the rows that training writes, one JSON object a line.

A file for each day and process. A request's lines are written at the end, all of them or none; a killed process leaves
at most one torn last line.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solon.errors import InputError
from solon.feedback.judges.identity import JudgeIdentity
from solon.records import Feedback, Group
from solon.runs.tables import label_rows


class Records:
    """`await Records(folder).write(groups, feedback, identity, {"run_id": …})`. Raises InputError for an unusable
    folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        try:
            self._append(b"")
        except OSError as error:
            raise InputError(f"records {folder} cannot be written: {error.strerror}; choose another folder") from None

    async def write(
        self, groups: Sequence[Group], found: Sequence[Feedback], identity: JudgeIdentity, mark: Mapping[str, Any]
    ) -> None:
        """Append the labels of a request. Raises OSError."""
        provenance = {**dataclasses.asdict(identity), **mark}
        lines = [
            json.dumps(row, ensure_ascii=False)
            for group, feedback in zip(groups, found, strict=True)
            for row in label_rows(feedback, provenance, subject=_digest(group))
        ]
        if lines:
            await asyncio.to_thread(self._append, ("\n".join(lines) + "\n").encode("utf-8", "replace"))

    def _append(self, content: bytes) -> None:
        """All of it or nothing: what a full disk cut is removed again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"labels-{time.strftime('%Y%m%d', time.gmtime())}-{os.getpid()}.jsonl"
        with self._lock:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            try:
                before = os.fstat(descriptor).st_size
                try:
                    written = 0
                    while written < len(content):
                        written += os.write(descriptor, content[written:])
                except OSError:
                    os.ftruncate(descriptor, before)
                    raise
            finally:
                os.close(descriptor)


def _digest(group: Group) -> str:
    """Of conversation and answers: texts of callers are not kept."""
    said = [[m.role, m.content] for m in group.prompt.messages], [one.text for one in group.rollouts]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
