"""int8 judges in float32 on processors with tiles (AMX).

There vLLM multiplies int8 layers with a kernel that accepts no float32 inputs and fails at the first prompt. Its other
kernel, used on processors without tiles, accepts them; verdicts are then the same on both. In bfloat16 the tiles remain
in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def int8_takes_float32(dtype: str) -> Iterator[None]:
    """Active while vLLM builds a model with this computing type: its layers choose their kernel at that time."""
    from vllm.model_executor.kernels.linear.scaled_mm import cpu

    has_tiles = cpu.check_cpu_sgl_kernel
    if dtype == "float32":
        cpu.check_cpu_sgl_kernel = lambda *_: False
    try:
        yield
    finally:
        cpu.check_cpu_sgl_kernel = has_tiles
