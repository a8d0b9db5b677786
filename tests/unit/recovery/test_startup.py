"""Workers that die, or cannot be, while a run starts."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from solon.errors import CallLostError, InputError, WorkerLostError
from solon.recovery.startup import START_TRIES, start


class Worker:
    """Fails to start as often, and in the way, that is configured."""

    name = "judge-0"

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.replaced = self.places = 0

    async def placed(self) -> None:
        self.places += 1

    async def start(self, *arguments: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        return ("up", *arguments)

    def replace(self) -> None:
        self.replaced += 1


def tell_into(events: list[str]) -> Any:
    return lambda name, **fields: events.append(f"{name} {fields['worker']}: {fields['cause']}")


async def test_a_worker_that_dies_or_stays_silent_at_its_start_is_started_again():
    events: list[str] = []
    worker = Worker(WorkerLostError("its node is gone"), CallLostError("unreachable"))
    steps: list[str] = []
    limits: dict[str, Any] = {"waits": partial(steps.append, "waits"), "placed": partial(steps.append, "placed")}
    assert await start(worker, "checkpoint", emit=tell_into(events), pauses_s=(0,), **limits) == ("up", "checkpoint")
    assert worker.replaced == 2
    assert worker.places == 3
    assert steps == ["waits", "placed"] * 3  # every process needs a place of its own
    assert events == ["worker_lost judge-0: its node is gone", "worker_lost judge-0: unreachable"]


async def test_a_worker_that_never_starts_ends_with_its_last_cause():
    worker = Worker(*(WorkerLostError(f"death {n}") for n in range(9)))
    with pytest.raises(WorkerLostError, match="death 2"):
        await start(worker, emit=tell_into([]))
    assert worker.replaced == START_TRIES - 1


async def test_an_unreachable_worker_is_waited_for_until_the_loss_of_its_node_can_be_detected():
    worker, events = Worker(*(CallLostError(f"silence {n}") for n in range(9))), list[str]()
    began = time.monotonic()
    with pytest.raises(CallLostError, match="silence 3"):
        await start(worker, emit=tell_into(events), pauses_s=(0.01, 0.05, 0.1))
    assert time.monotonic() - began >= 0.16
    assert worker.replaced == len(events) == 3


async def test_an_error_about_the_model_itself_is_not_retried():
    worker = Worker(InputError("no such model"))
    with pytest.raises(InputError, match="no such model"):
        await start(worker, emit=tell_into([]))
    assert worker.replaced == 0
