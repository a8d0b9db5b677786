"""Reads Prometheus' text format: `# TYPE` lines and samples."""

from __future__ import annotations

import re
from dataclasses import dataclass

SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: -?\d+)?$")
LABEL = re.compile(r'(?P<label>[A-Za-z_][A-Za-z0-9_]*)="(?P<value>(?:\\.|[^"\\])*)"(?:,|$)')


@dataclass(frozen=True)
class Sample:
    """One line: `Sample("up", {"job": "ray"}, 1.0, "gauge")`."""

    name: str
    labels: dict[str, str]
    value: float
    type: str
    """Of its family; empty: not stated."""


def read_samples(text: str) -> list[Sample]:
    """All samples of a scrape. Raises ValueError for a line that is none."""
    types: dict[str, str] = {}
    found = []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            types[name] = kind
        if not line or line.startswith("#"):
            continue
        match = SAMPLE.match(line)
        if match is None:
            raise ValueError(f"{line!r} is no sample")
        name = match["name"]
        family = next((name.removesuffix(end) for end in ("_bucket", "_sum", "_count") if name.endswith(end)), name)
        found.append(
            Sample(name, _labels(match["labels"] or ""), float(match["value"]), types.get(name, types.get(family, "")))
        )
    return found


def _labels(text: str) -> dict[str, str]:
    labels, place = {}, 0
    while place < len(text):
        match = LABEL.match(text, place)
        if match is None:
            raise ValueError(f"{text[place:]!r} is no label")
        labels[match["label"]] = match["value"]
        place = match.end()
    return labels
