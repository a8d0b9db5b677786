"""The share of the processor that a thread gets beside others."""

from __future__ import annotations

import os
import sys
import threading

LOWEST = 19
"""Niceness at which a thread gets 1.5 % of a core that another thread wants, and all of an idle one."""


def give_way() -> None:
    """The calling thread and those that it starts from now on give way to all others of the machine. Only on Linux,
    where each thread has a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
