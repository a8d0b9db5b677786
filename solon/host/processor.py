"""What the processor of this machine can compute."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Of x86 (`flags`) and Arm (`Features`)."""
CPU_INFO = Path("/proc/cpuinfo")


def fastest_dtype() -> Literal["bfloat16", "float32"]:
    """The type in which matrix products are fastest on this machine's processor."""
    return "bfloat16" if computes_bfloat16() else "float32"


def computes_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor multiplies bfloat16 in hardware. Without that, bfloat16 is slower than float32; False where
    the system does not tell."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(
        key.strip() in ("flags", "Features") and not BFLOAT16_FLAGS.isdisjoint(value.split())
        for key, _, value in (line.partition(":") for line in lines)
    )
