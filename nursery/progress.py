"""How far the growing is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PARTS = {
    "policy": "policy",
    "judge": "judge",
    "audit judge": "audit judge",
    "int8": "judge in int8",
    "measure one": "measuring policy and judge",
    "measure two": "measuring int8 and audit judge",
}
LARGE_PARTS = {"large judge": "large judge"}
TITLE = "growing the nursery: a policy, a judge and an audit judge, from nothing"
_LINE_EVERY = 0.25


class Display:
    """Shows the share of each part that is done."""

    def __init__(self, *, enabled: bool, parts: Mapping[str, str] = PARTS, title: str = TITLE) -> None:
        self._enabled = enabled
        self._parts = parts
        self._title = title
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:32}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._enabled and self._console.is_terminal:
            self._tasks = {part: self._bars.add_task(name, total=1.0) for part, name in self._parts.items()}
            self._bars.start()
        elif self._enabled:
            self._console.print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks:
            self._bars.stop()

    def show(self, part: str, done: float) -> None:
        """A part is so far done, 0 to 1."""
        if self._tasks:
            self._bars.update(self._tasks[part], completed=done)
        elif self._enabled and done >= self._said.get(part, 0.0) + _LINE_EVERY - 1e-9:
            self._said[part] = done
            self._console.print(f"  {self._parts[part]}: {done:.0%}", highlight=False)
