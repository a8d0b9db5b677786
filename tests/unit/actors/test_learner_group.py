"""Of the errors of several ranks, the one that is told: that of the rank which is the cause, at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import learner_group
from actors.learner_group import RemoteLearnerGroup
from learners.core.ranks import RankFailedError
from solon.errors import EngineFailedError, RunFailedError, WorkerLostError
from solon.runs.directory import DiskFullError

FULL = DiskFullError("the part of rank 1 of 2 does not fit: No space left on device", who="rank 1 of 2")
NO_MEMORY = EngineFailedError("the learner failed while training step 3: OutOfMemoryError")
BY_RANK_0 = RankFailedError("rank 0 of 2 failed: OutOfMemoryError")
GONE = WorkerLostError("learner, rank 1 of 2 died")
ALONE = EngineFailedError("the learner failed: RuntimeError: gloo: connection closed by peer")


async def outcome(errors: list[Exception | None]) -> Exception:
    """What a group raises whose ranks raise these errors; None: the rank waits for the others."""
    group = RemoteLearnerGroup.__new__(RemoteLearnerGroup)
    group.name, group._ranks = "learner", len(errors)

    async def rank(error: Exception | None) -> Any:
        if error is None:
            await asyncio.Event().wait()
        raise error  # type: ignore[misc]

    with pytest.raises(RunFailedError) as caught:
        await group._each([rank(error) for error in errors])
    return caught.value


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([FULL, FULL], FULL),
        ([None, FULL], FULL),
        ([BY_RANK_0, FULL], FULL),
        ([NO_MEMORY, BY_RANK_0], NO_MEMORY),
    ],
    ids=["a full disk on all", "others wait", "others were told of another", "the first rank told the others"],
)
async def test_a_full_disk_and_an_error_of_the_first_rank_are_told_as_they_are(
    errors: list[Exception | None], told: Exception, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learner_group, "GRACE_S", 0.1)
    assert await asyncio.wait_for(outcome(errors), 5) is told


async def test_a_dead_rank_is_the_cause_of_what_the_others_raise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learner_group, "GRACE_S", 0.1)
    found = await asyncio.wait_for(outcome([ALONE, GONE]), 5)
    assert type(found) is WorkerLostError
    assert "rank 1 of 2 was lost, and all ranks with it" in str(found)
