"""Freed memory goes back to the system when it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

from solon.host.allocator import RETURN_FREED_MEMORY, return_freed_memory

GAPS = """
import resource
from solon.host.allocator import return_freed_memory
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
blocks = [bytearray(2**20) for _ in range(200)]
kept = blocks[1::2]
del blocks
before = resident()
return_freed_memory()
print(before - resident())
"""


def test_memory_between_blocks_that_stay_is_returned():
    environment = os.environ | {"GLIBC_TUNABLES": RETURN_FREED_MEMORY}
    found = subprocess.run([sys.executable, "-c", GAPS], env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) > 50 * 2**20


def test_it_may_be_asked_for_at_any_time():
    return_freed_memory()
    return_freed_memory()
