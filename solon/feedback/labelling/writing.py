"""Lets a policy answer prompts without answers, once: a later start reads the answers from the file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

from solon.engines.base import EngineConfig
from solon.feedback.labelling.dataset import AnswerRow, SkippedRow
from solon.ledger.ledger import Grant
from solon.pipeline.prompt_screen import Screening, screen
from solon.pipeline.rollout import RolloutSettings, RolloutWorker
from solon.protocols import Assignment
from solon.records import Salvage, Sampling
from solon.runs.directory import RunDirectory

FILE = "answers.jsonl"
PROMPTS_AT_ONCE = 64


async def write_answers(
    directory: RunDirectory,
    prompts: Sequence[AnswerRow],
    engine: EngineConfig,
    *,
    answers: int,
    sampling: Sampling,
    seed: int,
) -> list[AnswerRow]:
    """The rows with `answers` answers each. The seed of an answer depends only on its row's number, so a resumed run
    writes the same texts."""
    known = _read(directory)
    todo = [row for row in prompts if row.row_id not in known]
    if todo:
        worker = RolloutWorker(engine, RolloutSettings(sampling=sampling, group_size=answers, seed=seed), name="policy")
        try:
            await worker.start()
            for start in range(0, len(todo), PROMPTS_AT_ONCE):
                chunk = {row.number: row for row in todo[start : start + PROMPTS_AT_ONCE]}
                work = [
                    Assignment(grant=Grant(ordinal=number, attempt=0, version=0), prompt=row.prompt)
                    for number, row in chunk.items()
                ]
                async for item in worker.generate(work):
                    if isinstance(item, Salvage):
                        continue  # answers are stored by whole groups
                    group = item[1]
                    row = chunk[group.ordinal]
                    known[row.row_id] = tuple(rollout.text for rollout in group.rollouts)
                    directory.append(FILE, {"id": row.row_id, "answers": known[row.row_id]})
        finally:
            await worker.close()
    return [dataclasses.replace(row, answers=known[row.row_id]) for row in prompts]


def unwritable(prompts: Sequence[AnswerRow], engine: EngineConfig, max_tokens: int) -> list[SkippedRow]:
    """Prompts that the engine's chat template refuses or that leave no room for an answer. Raises InputError when the
    tokenizer cannot be loaded."""
    room = engine.max_model_len - max_tokens
    how = Screening(model=engine.model, room=room, trust_remote_code=engine.trust_remote_code, chat=engine)
    found = []
    outcomes = screen([row.prompt.messages for row in prompts], how, name=lambda number: prompts[number].place)
    for row, outcome in zip(prompts, outcomes or (), strict=False):
        if outcome.refused:
            reason = outcome.refused
        elif outcome.is_overlong:
            reason = outcome.excess(room)
        else:
            continue
        found.append(SkippedRow(number=row.number, row_id=row.row_id, reason=reason, place=row.place))
    return found


def _read(directory: RunDirectory) -> dict[str, tuple[str, ...]]:
    path = directory.path / FILE
    if not path.exists():
        return {}
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):  # an incomplete line, written when the process died
        os.truncate(path, end)
    records = (json.loads(line) for line in whole[:end].splitlines())
    return {record["id"]: tuple(record["answers"]) for record in records}
