"""Versions of constraints.txt."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def pinned(name: str) -> str:
    """The version of a package."""
    (version,) = [
        line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith(f"{name}==")
    ]
    return version
