"""Data sets from chains of revisions: demonstrations, preference pairs, transcripts.

A revision teaches unless it is degenerate; a pair also needs a revision that differs from the first answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solon.evaluation.degenerate import degenerate
from solon.files.json_text import write_lines
from solon.revision.chains import Chain


def write_chains(folder: Path, chains: Sequence[Chain]) -> dict[str, Any]:
    """`demonstrations.jsonl` (the last revisions), `preferences.jsonl` (last revision over first answer) and
    `transcripts.jsonl`; returns counts for people."""
    kinds = Counter(_kind(chain) for chain in chains)
    taught = [chain for chain in chains if _kind(chain) in ("", "unchanged")]
    write_lines(folder / "demonstrations.jsonl", (_row(chain) | _turn("completion", chain.last) for chain in taught))
    write_lines(
        folder / "preferences.jsonl",
        (
            _row(chain) | _turn("chosen", chain.last) | _turn("rejected", chain.first) | {"weight": 1.0}
            for chain in taught
            if not _kind(chain)
        ),
    )
    write_lines(folder / "transcripts.jsonl", map(_transcript, chains))
    words = [[len(text.split()) for text in (chain.first, chain.last)] for chain in chains]
    return {
        "chains": len(chains),
        "critiques": sum(len(chain.rounds) for chain in chains),
        "demonstrations": len(taught),
        "preferences": kinds[""],
        "unchanged": kinds["unchanged"],
        "too_long": kinds["too long"],
        "degenerate": sum(count for kind, count in kinds.items() if kind not in ("", "unchanged", "too long")),
        "words_first": sum(first for first, _ in words) / len(words) if words else 0.0,
        "words_last": sum(last for _, last in words) / len(words) if words else 0.0,
    }


def _kind(chain: Chain) -> str:
    """Why the last revision teaches no preference; empty: it does."""
    if chain.is_cut:
        return "too long"
    found: str = degenerate(chain.last, chain.prompt.messages[-1].content)
    return found or ("unchanged" if chain.last.split() == chain.first.split() else "")


def _row(chain: Chain) -> dict[str, Any]:
    return {
        "row_id": chain.prompt.prompt_id,
        "prompt": [{"role": m.role, "content": m.content} for m in chain.prompt.messages],
    }


def _turn(column: str, text: str) -> dict[str, Any]:
    return {column: [{"role": "assistant", "content": text}]}


def _transcript(chain: Chain) -> dict[str, Any]:
    rounds = [
        {"principle_id": one.principle_id, "critique": one.critique, "revision": one.revision} for one in chain.rounds
    ]
    return _row(chain) | {"first": chain.first, "rounds": rounds, "left_out": _kind(chain)}
