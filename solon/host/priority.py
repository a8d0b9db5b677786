"""The share of the processor that a thread gets beside others."""

from __future__ import annotations

import os
import sys


def give_way() -> None:
    """The calling thread and those that it starts from now on take only what other threads leave of the cores. Only on
    Linux, where each thread has a scheduling policy of its own.

    Niceness would not do: Ray runs all its workers at 15 of at most 19.
    """
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
