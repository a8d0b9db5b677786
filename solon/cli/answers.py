"""`solon answers`: answers to held-out prompts before and after training, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from solon.cli.terminal import visible
from solon.errors import InputError

BEFORE, AFTER = "heldout-before.json", "heldout-after.json"


def before_and_after(directory: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows of both evaluations by prompt, in the order of the file. Raises InputError when one is missing."""
    rows = []
    for name in (BEFORE, AFTER):
        path = directory / name
        if not path.is_file():
            raise InputError(
                f"{directory} has no {name}, expected a run with held-out answers from before and after training; "
                "set evaluate.prompts and evaluate.evaluator, and let the run end"
            )
        try:
            rows.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise InputError(f"{path} cannot be read: {error}; expected the file that a run wrote") from None
    after = {row["prompt_id"]: row for row in rows[1]}
    return [(row, after[row["prompt_id"]]) for row in rows[0] if row["prompt_id"] in after]


def has_both(directory: Path) -> bool:
    """Whether the run has been evaluated before and after training."""
    return all((directory / name).is_file() for name in (BEFORE, AFTER))


def answers_table(directory: Path, number: int) -> Table:
    """`number` prompts spread evenly over the file, each with the principles that its answers kept and missed."""
    pairs = before_and_after(directory)
    shown = pairs[:: max(1, len(pairs) // number)][:number]
    table = Table(title="held-out answers", title_justify="left", show_lines=True)
    for column in ("prompt", "before", "after"):
        table.add_column(column, ratio=1, overflow="fold")
    for before, after in shown:
        said = "\n".join(f"{turn['role']}: {turn['content']}" for turn in before["prompt"][:-1])
        prompt = f"{said}\n{before['prompt'][-1]['content']}".strip()
        table.add_row(*(_plain(text) for text in (prompt, _answer(before), _answer(after))))
    return table


def _answer(row: dict[str, Any]) -> str:
    marks = ", ".join(f"{'+' if score else '-'}{name}" for name, score in row["scores"].items())
    return f"{row['answer'].strip()}\n[{marks}]"


def _plain(text: str) -> Text:
    return Text(visible(text))
