"""vLLM's attention for CPUs with cache blocks of 16 tokens.

Its kernels read blocks of any multiple of 16 (`vec16`), but their class announces multiples of 32, and vLLM relies on
the class. Prefixes are shared in whole blocks, so smaller blocks help prompts of a few dozen tokens.
"""

from __future__ import annotations

import functools

BACKEND = f"{__name__}.SmallBlocks"
"""The class path for vLLM's registry (`vllm.v1.attention.backends.registry.register_backend`)."""


def __getattr__(name: str) -> type:
    if name == "SmallBlocks":
        return _small_blocks()
    raise AttributeError(name)


@functools.cache
def _small_blocks() -> type:
    # Created when vLLM asks for it: importing this module must not import vLLM.
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    class SmallBlocks(CPUAttentionBackend):  # type: ignore[misc]  # vLLM is typed as Any
        """`CPU_ATTN` in blocks of 16 tokens."""

        @staticmethod
        def get_supported_kernel_block_sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
            return [MultipleOf(16)]

    return SmallBlocks
