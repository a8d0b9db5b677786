"""Threads that leave the processor to others."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from solon.host.priority import give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no policy of their own")


def in_a_thread(found: dict[str, int], name: str) -> None:
    thread = threading.Thread(target=lambda: found.update({name: os.sched_getscheduler(0)}))
    thread.start()
    thread.join()


def test_a_thread_gives_way_with_those_that_it_starts_and_no_other_thread_does():
    found: dict[str, int] = {}
    before = os.sched_getscheduler(0)

    def work() -> None:
        give_way()
        found["itself"] = os.sched_getscheduler(0)
        in_a_thread(found, "its own")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    in_a_thread(found, "another")
    assert found == {"itself": os.SCHED_IDLE, "its own": os.SCHED_IDLE, "another": before}
    assert os.sched_getscheduler(0) == before
