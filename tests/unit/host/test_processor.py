"""What the processor can compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.host.processor import computes_bfloat16


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", True),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx2", False),
        ("Features\t: fp asimd bf16", True),
        ("model name\t: bf16", False),
    ],
)
def test_bfloat16_is_read_from_the_flags_of_the_processor(tmp_path: Path, line: str, expected: bool):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    assert computes_bfloat16(tmp_path / "cpuinfo") is expected


def test_a_system_that_does_not_tell_counts_as_without(tmp_path: Path):
    assert not computes_bfloat16(tmp_path / "missing")
