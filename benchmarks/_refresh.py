"""Writes the rows of benchmark files into docs/performance.md, between the marks with the benchmark's name.

    python benchmarks/_refresh.py runs/bench/*.json

A mark is `<!-- rows: NAME -->`; everything up to the next `<!-- /rows -->` is replaced. A missed goal is marked NO.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def table(record: dict[str, Any]) -> str:
    """Rows as Markdown, with the conditions of their measurement."""
    lines = [
        f"*{record['date']}, commit {record['commit']}, {record['machine']}*",
        "",
        "| | ours | reference | ratio | goal | met |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        met = {True: "yes", False: "**NO**", None: ""}[row["met"]]
        numbers = (number(row[key]) for key in ("ours", "reference", "ratio"))
        lines.append(f"| {row['metric'].replace('|', '/')} | {' | '.join(numbers)} | {row['goal']} | {met} |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def refresh(page: str, record: dict[str, Any]) -> str:
    """The page with one benchmark's rows replaced. Raises ValueError when it has no place for them."""
    mark = re.compile(rf"(<!-- rows: {re.escape(record['name'])} -->\n).*?(<!-- /rows -->)", re.DOTALL)
    if not mark.search(page):
        raise ValueError(f"{PAGE} has no `<!-- rows: {record['name']} -->`; add one where the rows belong")
    return mark.sub(lambda found: f"{found[1]}{table(record)}\n{found[2]}", page)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path in sys.argv[1:]:
        page = refresh(page, json.loads(Path(path).read_text(encoding="utf-8")))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
