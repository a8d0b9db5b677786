"""Makes docs/data.md from the descriptions in the code: `python scripts/data_page.py`; `--check` compares instead."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "data.md"
sys.path.insert(0, str(ROOT))

from solon.events import EVENTS  # noqa: E402
from solon.runs import objects  # noqa: E402
from solon.runs.columns import COLUMNS, HELD  # noqa: E402
from solon.runs.tables import TYPES  # noqa: E402

INTRO = """# Files, columns and keys

Made from `solon/runs/columns.py` and `solon/runs/objects.py` by `python scripts/data_page.py`. A test compares this
page with the code, others compare the files of real runs with both.

## Reading a run

Parquet parts of a table have one schema and are read together. The five best answers of a run, and why they are:

```python
import pandas as pd

rollouts = pd.read_parquet("runs/demo/rollouts")
labels = pd.read_parquet("runs/demo/labels")
key = ["ordinal", "attempt", "index"]
# A group that was made again after a resume has its numbers twice: the later row counts.
rollouts = rollouts.drop_duplicates(key, keep="last")
best = rollouts.dropna(subset="reward").sort_values("reward").tail(5)[[*key, "text", "reward", "advantage", "step"]]
why = labels.explode("rollouts").rename(columns={"rollouts": "index"}).astype({"index": "int64"})
print(best.merge(why[[*key, "principle_id", "margin", "detail"]], on=key))
```

**Rows of rollouts are written at once**, and `reward`, `advantage` and `step` are filled in when they are known. A run
that dies has lost nothing that it had made, and there is one table, not two to be joined. For that a part is written
again, as a whole and by rename: when all of its groups are trained or dropped, before a checkpoint, and at the end. Its
rows and their order never change. Until then the three are null. To wait with the rows would lose, with a process that
is killed, what was generated and not trained; a second table would leave the join to every reader.

Lines of `.jsonl` files are only ever added; other files appear whole, by rename. Of a process that was killed the last
line of a file may be cut; the next start removes it.
"""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def columns(name: str, names: Iterable[str]) -> str:
    about = COLUMNS[name]
    return table(
        ("column", "type", "meaning"),
        ((f"`{column}`", TYPES[name].get(column, "string"), about[column]) for column in names),
    )


def keys(found: Mapping[str, str]) -> str:
    return table(("key", "meaning"), ((f"`{key}`", about) for key, about in found.items()))


def files(title: str, found: Mapping[str, tuple[str, objects.Keys | None]]) -> Iterable[str]:
    yield f"## {title}\n"
    yield table(("file", "what it is"), ((f"`{name}`", about) for name, (about, _) in found.items()))
    told: list[objects.Keys] = []
    for name, (_, inner) in found.items():
        if inner is not None and inner not in told:
            told.append(inner)
            alike = [f"`{other}`" for other, (_, same) in found.items() if same is inner]
            yield f"### {', '.join(alike)}\n"
            yield keys(inner)
        elif name == "metrics.jsonl":
            yield "### `metrics.jsonl`\n"
            yield "Keys read `stage/what/stat`; [algorithm.md](algorithm.md) has a table of all of them.\n"
        elif name == "events.jsonl":
            yield "### `events.jsonl`\n"
            yield "Every line has `time`, seconds since the epoch, and `event`. `info` is normal operation, `warning`"
            yield "needs attention, `fault` is a failure that the run dealt with. The table is `solon/events.py`.\n"
            yield table(
                ("event", "severity", "what happened", "further keys"),
                (
                    (
                        f"`{kind.name}`",
                        kind.severity,
                        kind.meaning,
                        "; ".join(f"`{key}`: {field.meaning}" for key, field in kind.fields.items()),
                    )
                    for kind in EVENTS.values()
                ),
            )
        elif name == "rollouts/part-*.parquet":
            yield "### `rollouts/part-*.parquet`\n"
            yield columns("rollouts", COLUMNS["rollouts"])
        elif name == "labels/part-*.parquet" and found is objects.RUN:
            yield "### `labels/part-*.parquet`\n"
            yield columns("labels", COLUMNS["labels"])
        elif name.endswith("held.parquet"):
            yield f"### `{name}`\n"
            yield "The columns of rollouts without `reward`, `advantage` and `step`, and\n"
            yield columns("held", HELD)


def page() -> str:
    parts = [INTRO, *files("A run directory, `runs/NAME`", objects.RUN)]
    parts += files("A labelled data set, `solon label … --out DIR`", objects.LABELLED)
    return "\n".join(parts)


def main() -> int:
    if "--check" in sys.argv:
        return 0 if PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
