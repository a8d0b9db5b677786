"""Threads that leave the processor to others."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from solon.host.priority import LOWEST, give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own elsewhere")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def in_a_thread(found: dict[str, int], name: str) -> None:
    thread = threading.Thread(target=lambda: found.update({name: niceness()}))
    thread.start()
    thread.join()


def test_a_thread_gives_way_with_those_that_it_starts_and_no_other_thread_does():
    found: dict[str, int] = {}
    before = niceness()

    def work() -> None:
        give_way()
        found["itself"] = niceness()
        in_a_thread(found, "its own")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    in_a_thread(found, "another")
    assert found == {"itself": LOWEST, "its own": LOWEST, "another": before}
    assert niceness() == before
