"""What the ranks of an engine report, as one report of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from solon.records import WeightCheck


def one_check(checks: Sequence[WeightCheck]) -> WeightCheck:
    """The comparison of the whole engine; a tensor is named with the rank whose part of it differs."""
    if len(checks) == 1:
        return checks[0]

    def named(part: str) -> tuple[str, ...]:
        return tuple(f"{name} of rank {rank}" for rank, check in enumerate(checks) for name in getattr(check, part))

    # A rank that compared nothing proves nothing, whatever the others did.
    compared = sum(check.compared for check in checks) if all(check.compared for check in checks) else 0
    return replace(
        checks[0], compared=compared, stale=named("stale"), unknown=named("unknown"), uncompared=named("uncompared")
    )


def one_checksum(checksums: Sequence[str]) -> str:
    """A digest of the live parameters of all ranks."""
    if len(checksums) == 1:
        return checksums[0]
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()
