"""Settings of the C library's allocator for processes that allocate the same large tensors again and again."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def _tunables(**values: int) -> str:
    return ":".join(f"glibc.malloc.{name}={value}" for name, value in values.items())


KEEP_FREED_MEMORY = _tunables(mmap_max=0, trim_threshold=2**40, top_pad=2**26, arena_max=1)
"""By default glibc returns the memory of a large tensor to the kernel as soon as it is freed. The next tensor then
faults on every page, which takes longer than a pass over its elements."""
RETURN_FREED_MEMORY = _tunables(mmap_threshold=2**22, hugetlb=1, trim_threshold=2**40, arena_max=1)
"""For processes that are several to save memory. What is kept has gaps between the tensors that stay: with layers that
are gathered and given back, three times the memory in use. So tensors of 4 MiB and more, which are those layers, are
mapped one by one, in huge pages where the kernel has them, and `return_freed_memory` gives back the rest."""


def return_freed_memory() -> None:
    """Give the pages of freed tensors back to the system. Without glibc nothing happens."""
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None
    return trim
