"""Sets of prompts as files in the user's cache, written once for each version of their sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from nursery.prompts import write_jsonl
from solon.host.whole_directory import made_once
from solon.records import Prompt

Sets = Mapping[str, Callable[[], Sequence[Prompt]]]
"""What makes the prompts of each set, by name."""


def written(cache_dir: Path, world: str, sets: Sets, sources: Iterable[Path]) -> dict[str, Path]:
    """The files of all sets by name. sources: files that the prompts depend on. Raises OSError for an unusable
    cache."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()[:16]
    place = cache_dir / f"{world}-sets-{digest}"
    files = {name: place / f"{name}.jsonl" for name in sets}
    made_once(place, [file.name for file in files.values()], partial(_write, sets))
    return files


def _write(sets: Sets, folder: Path) -> None:
    for name, make in sets.items():
        write_jsonl(folder / f"{name}.jsonl", make())
