"""The view of a run: a live display in a terminal, plain lines elsewhere, nothing with --json."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from solon.cli.answers import answers_table, has_both
from solon.cli.run_end import end_lines, end_table
from solon.cli.run_lines import alarm_line, clock, health_line, repeated, reward_line, step_line, warning_line
from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.events import is_shown
from solon.ledger.drops import Drops, Folded
from solon.telemetry.overlap import LANES, measure
from solon.telemetry.totals import RunTotals

if TYPE_CHECKING:
    from cluster.launch import ClusterInfo
    from solon.ledger.async_ledger import AsyncLedger

WINDOW_S = 15.0
WAITING = {"generate": "generating", "label": "judging", "learn": "ready"}
"""The ledger's count that is shown beside each lane."""


def make_view(*, quiet: bool, num_answers: int = 0) -> PlainView | LiveView | SilentView:
    """The view for this output. num_answers: held-out answers from before and after, shown at the end."""
    if quiet:
        return SilentView()
    console = Console(highlight=False)
    view = LiveView if console.is_terminal else PlainView
    return view(console, num_answers=num_answers)


class SilentView:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Show a line of text."""

    def cluster(self, info: ClusterInfo, directory: Path) -> None:
        """The cluster is connected, and the run directory exists."""

    def starting(self, names: Sequence[str]) -> None:
        """Workers with these names are being started."""

    def ready(self, name: str) -> None:
        """A worker has started."""

    def evaluated(self, when: str, scores: dict[str, float]) -> None:
        """Held-out scores by principle, `before` or `after` training."""

    def training(self, totals: RunTotals, ledger: AsyncLedger) -> None:
        """The first step begins."""

    def changed(self, event: str) -> None:
        """A step was committed (`step`), or an event of this name occurred."""

    def ended(self, summary: dict[str, Any], directory: Path) -> None:
        """The run has ended with this summary."""


class PlainView(SilentView):
    """One line for each step and each shown event: for logs, `ray job submit`, and pipes."""

    def __init__(self, console: Console, *, num_answers: int = 0) -> None:
        self._console, self._num_answers = console, num_answers
        self._started_s = time.monotonic()
        self._totals: RunTotals | None = None
        self._drops = Drops()
        self._folded = Folded()

    def note(self, text: str) -> None:
        """Print a line of text."""
        self._say(text)

    def cluster(self, info: ClusterInfo, directory: Path) -> None:
        """Print run directory, resources and dashboard."""
        self._say(f"run directory {directory}")
        cpus, gpus = info.resources.get("CPU", 0), info.resources.get("GPU", 0)
        where = f"dashboard http://{info.dashboard_url}" if info.dashboard_url else "no dashboard"
        where += f" (it asks for the token in {info.token_path})" if info.token_path else ""
        self._say(f"Ray cluster {info.address} with {cpus:g} CPUs and {gpus:g} GPUs, {where}")
        if info.files:
            self._say(f"Ray's files are in {info.files}; its logs stay there when the run fails")

    def starting(self, names: Sequence[str]) -> None:
        """Print which workers are being started."""
        self._say(f"starting {', '.join(names)}")

    def ready(self, name: str) -> None:
        """Print that a worker has started."""
        self._say(f"{name} is ready")

    def evaluated(self, when: str, scores: dict[str, float]) -> None:
        """Print held-out scores."""
        parts = ", ".join(f"{name} {score:.3f}" for name, score in scores.items() if name != "mean")
        self._say(f"held-out {when}: mean {scores.get('mean', float('nan')):.3f} ({parts})")

    def training(self, totals: RunTotals, ledger: AsyncLedger) -> None:
        """Print how many steps the run has."""
        self._totals = totals
        self._say(f"training {totals.total_steps} steps")

    def changed(self, event: str) -> None:
        """Print a committed step, or an event that is shown."""
        if event == "step" and self._totals is not None:
            self._say(step_line(self._totals))
        else:
            self._happened(event)

    def _happened(self, event: str) -> None:
        """Print an event that is shown."""
        if event == "group_dropped" and self._totals is not None:
            if (text := self._drops.add(self._totals.last_drop)) is not None:
                self._say(text)
        elif event in ("nothing_moved", "answers_cut") and self._totals is not None:
            if (count := self._folded.add(event)) is not None:
                self._say(warning_line(self._totals, count))
        elif event == "alarm" and self._totals is not None:
            alarm = self._totals.last_alarm
            if (count := self._folded.add(f"alarm {alarm.get('kind')}")) is not None:
                self._say(alarm_line(alarm, count))
        elif is_shown(event.partition(" ")[0]) and (count := self._folded.add(event)) is not None:
            self._say(repeated(event, count))

    def ended(self, summary: dict[str, Any], directory: Path) -> None:
        """Print counts of repeated events, the table of scores and the summary."""
        for event, count in self._folded.unreported().items():
            if is_shown(event.partition(" ")[0]):
                self._say(repeated(event, count))
        if summary["eval"]["after"]:
            print_table(self._console, end_table(summary))
            if self._num_answers and has_both(directory):
                self._console.print(answers_table(directory, self._num_answers))
        self._console.print(end_lines(summary, directory), soft_wrap=True)

    def _say(self, text: str) -> None:
        self._console.print(Text(f"{clock(time.monotonic() - self._started_s)}  {visible(text)}"), soft_wrap=True)


class LiveView(PlainView):
    """A bar while engines load, then the three lanes at work."""

    def __init__(self, console: Console, *, num_answers: int = 0) -> None:
        super().__init__(console, num_answers=num_answers)
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._loading: TaskID | None = None
        self._ledger: AsyncLedger | None = None
        self._counts: dict[str, int] = {}
        self._asking: asyncio.Task[None] | None = None

    def starting(self, names: Sequence[str]) -> None:
        """Show a progress bar of the workers."""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._loading = self._progress.add_task(visible(f"starting {', '.join(names)}"), total=len(names))
        self._progress.start()

    def ready(self, name: str) -> None:
        """Advance the progress bar."""
        if self._progress is not None and self._loading is not None:
            self._progress.advance(self._loading)
            if self._progress.finished:
                self._progress.stop()
        super().ready(name)

    def training(self, totals: RunTotals, ledger: AsyncLedger) -> None:
        """Start the live display."""
        super().training(totals, ledger)
        self._ledger = ledger
        self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def changed(self, event: str) -> None:
        """Print an event that is shown, and fetch the ledger's counts."""
        self._happened(event)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask_counts())

    def ended(self, summary: dict[str, Any], directory: Path) -> None:
        """Stop the live display and print the summary."""
        if self._progress is not None:
            self._progress.stop()
        if self._live is not None:
            self._live.stop()
        super().ended(summary, directory)

    def evaluated(self, when: str, scores: dict[str, float]) -> None:
        """Print held-out scores; the last ones end the live display."""
        if when == "after" and self._live is not None:
            self._live.stop()
            self._live = None
        super().evaluated(when, scores)

    async def _ask_counts(self) -> None:
        if self._ledger is not None:
            with suppress(Exception):
                self._counts = await self._ledger.counts()

    def _picture(self) -> Group:
        assert self._totals is not None
        return picture(self._totals, self._counts)


def picture(totals: RunTotals, counts: dict[str, int]) -> Group:
    """The three lanes, the queue between them, staleness, reward, and the binding lane."""
    now = time.time()
    window = measure(totals.spans, start_s=max(now - WINDOW_S, totals.started_s), end_s=now)
    left = totals.wall_s / totals.steps * (totals.total_steps - totals.steps) if totals.steps else None
    head = Text.assemble(
        ("step ", "dim"), (f"{totals.steps}/{totals.total_steps}", "bold"), f"   {clock(totals.wall_s)}",
        f"   about {clock(left)} left" if left is not None else "",
    )  # fmt: skip
    lanes = Table.grid(padding=(0, 2))
    for lane in LANES:
        share = window.busy[lane]
        colour = "green" if lane == window.binding_stage else "cyan"
        bar = Text("━" * round(30 * share), style=colour) + Text("─" * (30 - round(30 * share)), style="dim")
        queue = f"{counts.get(WAITING[lane], 0)} {WAITING[lane]}" if counts else ""
        binds = "binds" if lane == window.binding_stage else ""
        lanes.add_row(
            Text(lane), bar, Text(f"{share:4.0%}"), Text(f"{queue:<16}", style="dim"), Text(binds, style=colour)
        )
    return Group(head, lanes, Text(reward_line(totals)), Text(health_line(totals), style="dim"))
