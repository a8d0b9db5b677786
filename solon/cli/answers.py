"""`solon answers`: answers to held-out prompts before and after training, side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from rich.table import Table
from rich.text import Text

from solon.cli.terminal import visible
from solon.errors import InputError

BEFORE, AFTER = "heldout-before.json", "heldout-after.json"


class Turn(BaseModel):
    """A turn of a held-out prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


class HeldoutRow(BaseModel):
    """What is read of a row of `heldout-*.json`."""

    model_config = ConfigDict(frozen=True)

    prompt_id: str
    prompt: Annotated[list[Turn], Field(min_length=1)]
    answer: str
    scores: dict[str, float]
    """By principle, 1 where the answer kept it."""


_ROWS = TypeAdapter(Annotated[list[HeldoutRow], Field(min_length=1)])
Pair = tuple[HeldoutRow, HeldoutRow]


def before_and_after(directory: Path) -> list[Pair]:
    """The rows of both evaluations by prompt, in the order of the file.

    Raises InputError when the directory or a file is missing, or a file is not what a run writes.
    """
    if not os.path.isdir(directory):  # noqa: PTH112  # what cannot be a path raises nothing
        raise InputError(f"there is no run directory {directory}, expected one, or the name of one under runs/")
    before, after = (_rows(directory / name) for name in (BEFORE, AFTER))
    by_prompt = {row.prompt_id: row for row in after}
    pairs = [(row, by_prompt[row.prompt_id]) for row in before if row.prompt_id in by_prompt]
    if not pairs:
        raise InputError(f"{directory}: {BEFORE} and {AFTER} share no prompt, expected those of one run")
    return pairs


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
        earlier = [f"{turn.role}: {turn.content}" for turn in before.prompt[:-1]]
        prompt = "\n".join([*earlier, before.prompt[-1].content])
        table.add_row(*(Text(visible(text)) for text in (prompt, _answer(before), _answer(after))))
    return table


def _rows(path: Path) -> list[HeldoutRow]:
    if not path.is_file():
        raise InputError(
            f"{path.parent} has no {path.name}, expected a run with held-out answers from before and after training; "
            "set evaluate.prompts and evaluate.evaluator, and let the run end"
        )
    try:
        return _ROWS.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; change its permissions") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f" ({'.'.join(map(str, first['loc'])) or 'the whole file'}: {first['msg']})"
        raise InputError(
            f"{path} cannot be read{where}, expected the rows that a run writes; the run is damaged"
        ) from None


def _answer(row: HeldoutRow) -> str:
    marks = ", ".join(f"{'+' if score > 0 else '-'}{name}" for name, score in row.scores.items())
    return f"{row.answer.strip()}\n[{marks}]"
