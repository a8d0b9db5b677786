"""vLLM's attention for CPUs with cache blocks of 16 tokens.

Its kernels read blocks of any multiple of 16 (`vec16`), but the class that offers them announces multiples of 32, and
vLLM believes the class. What is shared by two prompts is found by whole blocks, so the smaller ones are worth having
for prompts of a few dozen tokens.
"""

from __future__ import annotations

import functools

BACKEND = f"{__name__}.SmallBlocks"
"""The name by which vLLM asks for the class (`vllm.v1.attention.backends.registry.register_backend`)."""


def __getattr__(name: str) -> type:
    if name == "SmallBlocks":
        return _small_blocks()
    raise AttributeError(name)


@functools.cache
def _small_blocks() -> type:
    # Made when vLLM asks for it: importing this module must not import vLLM.
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    class SmallBlocks(CPUAttentionBackend):  # type: ignore[misc]  # vLLM is seen as Any
        """`CPU_ATTN` in blocks of 16 tokens."""

        @staticmethod
        def get_supported_kernel_block_sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
            return [MultipleOf(16)]

    return SmallBlocks
