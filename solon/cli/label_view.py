"""Progress and results of `solon label`, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.feedback.labelling.label_run import Progress as Done
from solon.files.json_text import json_text


class LabelView:
    """A progress bar in a terminal, a line every ten seconds elsewhere, nothing with --json."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(highlight=False, quiet=quiet)
        self._bar: Progress | None = None
        self._told_s = 0.0

    def note(self, text: str) -> None:
        """Print one line."""
        self._console.print(Text(visible(text)), soft_wrap=True)

    @contextmanager
    def live(self, total: int) -> Iterator[None]:
        """Show the progress of `total` rows while the block runs."""
        if not self._console.is_terminal:
            yield
            return
        columns = (
            SpinnerColumn(),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as bar:
            self._bar = bar
            bar.add_task("starting", total=total)
            yield
        self._bar = None

    def progress(self, done: Done) -> None:
        """Update the bar, or print a line when ten seconds have passed since the last one."""
        text = describe_progress(done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done.rows_before + done.rows, description=text)
        elif done.elapsed_s - self._told_s >= 10:
            self._told_s = done.elapsed_s
            self.note(text)

    def end(self, summary: dict[str, Any], directory: Path) -> None:
        """Print the summary and where the labels are."""
        rows, labels, cost = summary["rows"], summary["labels"], summary["cost"]
        self.note(
            f"{summary['status']}: {rows['done']} of {rows['total']} rows labelled, "
            f"{summary['preferences']} preferences in {directory / 'preferences.jsonl'}"
            + (f"; {rows['skipped']} rows skipped, see {directory / 'quarantine.jsonl'}" if rows["skipped"] else "")
        )
        if "budget" in summary:
            self.note(f"nothing more is asked in this start: {summary['budget']}")
        if rows["left"]:
            self.note(f"{rows['left']} rows are left; start the same command again to continue")
        if not labels["valid"]:
            return  # the failure tells it all; an empty table would hide it
        print_table(self._console, _quality_table(summary))
        if summary["contradicted"]:
            self.note(
                f"{summary['contradicted']} pairs are no preference: the judge favours one answer in one order and the "
                "other in the other (--set feedback.swap.contradicted=keep writes them)"
            )
        elif not summary["preferences"]:
            self.note("no preference: every pair is a tie, has an invalid label, or its answers are the same text")
        for warning in summary.get("warnings", ()):
            self.note(f"warning: {warning}")
        if labels["invalid"]:
            invalid = {k: v for k, v in labels["by_status"].items() if k not in ("ok", "tie")}
            self.note(f"no verdict: {json_text(invalid)}")
        if cost["usd"]:
            self.note(f"spent {cost['usd']:.4f} USD")


def describe_progress(done: Done) -> str:
    """One line: rows done, rate, cost, time left."""
    left = done.left_s
    parts = [
        f"{done.rows_before + done.rows} of {done.rows_total} rows",
        f"{done.labels_per_s:,.0f} labels/s",
        f"{done.invalid} without a verdict" if done.invalid else "",
        f"{done.usd:.4f} USD" if done.usd else "",
        f"{left:,.0f} s left" if left is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _quality_table(summary: dict[str, Any]) -> Table:
    quality, cost, labels = summary["quality"], summary["cost"], summary["labels"]
    table = Table("labels", "", box=None, show_header=False)

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    table.add_row("labels, of them valid", f"{labels['total']:,}, {share(labels['valid'] / max(1, labels['total']))}")
    table.add_row("ties", share(quality["tie_share"]))
    table.add_row(
        "both orders agree", f"{share(quality['consistent_share'])} of {quality['both_orders']:,} asked twice"
    )
    table.add_row("decided by position", share(quality["by_position_share"]))
    table.add_row("position offset, mean", f"{number(quality['position_offset_mean'])} nats")
    table.add_row("first answer chosen", share(quality["first_answer_chosen_share"]))
    table.add_row("margin, mean", f"{number(quality['margin_mean'])} nats")
    table.add_row("doubt, mean", f"{number(quality['entropy_bits_mean'])} bits")
    table.add_row("questions, from the cache", f"{cost['questions']:,}, {cost['cache_hits']:,}")
    table.add_row("prompt tokens from the prefix cache", share(cost["cached_token_share"]))
    table.add_row("labels a second, this start", f"{summary['this_start']['labels_per_s']:,.1f}")
    return table
