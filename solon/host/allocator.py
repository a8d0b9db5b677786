"""Settings of the C library's allocator for processes that allocate the same large tensors again and again."""

from __future__ import annotations

KEEP_FREED_MEMORY = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"mmap_max": 0, "trim_threshold": 2**40, "top_pad": 2**26, "arena_max": 1}.items()
)
"""By default glibc returns the memory of a large tensor to the kernel as soon as it is freed. The next tensor then
faults on every page, which takes longer than a pass over its elements."""
RETURN_FREED_MEMORY = f"glibc.malloc.mmap_threshold={2**20}"
"""For processes that are several to save memory. By default glibc keeps more and more of what is freed, up to 32 MiB a
tensor, in a heap with gaps between the tensors that stay: with layers that are gathered and given back, three times the
memory in use."""
