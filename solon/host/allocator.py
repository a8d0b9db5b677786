"""Settings of the C library's allocator for processes that allocate the same large tensors again and again."""

from __future__ import annotations

KEEP_FREED_MEMORY = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"mmap_max": 0, "trim_threshold": 2**40, "top_pad": 2**26, "arena_max": 1}.items()
)
"""By default glibc returns the memory of a large tensor to the kernel as soon as it is freed. The next tensor then
faults on every page, which takes longer than a pass over its elements."""
