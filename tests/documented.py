"""Whether everything in a directory that Solon wrote is described in docs/data.md and docs/algorithm.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from solon.events import EVENTS
from solon.runs.columns import COLUMNS
from solon.runs.objects import Keys

ROOT = Path(__file__).resolve().parents[1]
Files = Mapping[str, tuple[str, Keys | None]]


def undocumented(directory: Path, files: Files) -> list[str]:
    """Files, columns and keys that no description names; empty: all of them have one."""
    found: set[str] = set()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = str(path.relative_to(directory))
        pattern = next((one for one in files if fnmatchcase(name, one)), None)
        if pattern is None:
            found.add(f"{name}: not described")
            continue
        found |= {f"{pattern}: {what}" for what in _unknown(path, files[pattern][1])}
    return sorted(found)


def _unknown(path: Path, keys: Keys | None) -> Iterator[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = "held" if path.name == "held.parquet" else path.parent.name
        yield from (column for column in pq.read_schema(path).names if column not in COLUMNS[table])
    elif path.name == "metrics.jsonl":
        known = metric_keys()
        yield from (key for line in _lines(path) for key in line if not _matches(key, known))
    elif path.name == "events.jsonl":
        for line in _lines(path):
            name = line["event"]
            if name not in EVENTS:
                yield f"event {name}"
                continue
            fields = EVENTS[name].fields
            for key in line.keys() - {"time", "event"}:
                if key not in fields:
                    yield f"{name}: {key}"
                elif not fields[key].accepts(line[key]):
                    yield f"{name}: {key} is {line[key]!r}, expected {fields[key].type}"
    elif keys is not None:
        objects = _lines(path) if path.suffix == ".jsonl" else json.loads(path.read_text())
        for one in objects if isinstance(objects, list) else [objects]:
            yield from (key for key in _dotted(one, keys) if not _matches(key, keys))


def metric_keys() -> set[str]:
    """Keys in the tables of docs/algorithm.md: `a/{b,c}/d` stands for two, `/max` and `_low` vary a key."""
    found: set[str] = set()
    for line in (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            full = ""
            for key in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
                what, _, stat = full.rpartition("/")
                if key.startswith("/"):
                    key = what + key
                elif key.startswith("_"):
                    key = f"{what}{key}/{stat}"
                else:
                    full = key
                parts = re.split(r"\{([^}]*)\}", key)
                found |= {
                    "".join(choice)
                    for choice in product(*(p.split(",") if n % 2 else [p] for n, p in enumerate(parts)))
                }
    return found


def _matches(key: str, known: Mapping[str, Any] | set[str]) -> bool:
    return key in known or any("*" in one and fnmatchcase(key, one) for one in known)


def _dotted(value: Mapping[str, Any], keys: Keys, prefix: str = "") -> Iterator[str]:
    """Keys of an object, those within it after a dot, as deep as the descriptions go."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and name not in keys and any(one.startswith(f"{name}.") for one in keys):
            yield from _dotted(inner, keys, f"{name}.")
        else:
            yield name


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
