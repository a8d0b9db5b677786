"""What a person sees of a run: a live picture in a terminal, plain lines anywhere else, nothing with --json."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.doctor.ending import Ending
from solon.events import is_shown
from solon.ledger.drops import Drops, Folded
from solon.telemetry.overlap import LANES, measure
from solon.telemetry.totals import RunTotals

if TYPE_CHECKING:
    from cluster.launch import ClusterInfo
    from solon.ledger.async_ledger import AsyncLedger

WINDOW_S = 15.0
BLOCKS = "▁▂▃▄▅▆▇█"
WAITING = {"generate": "generating", "label": "judging", "learn": "ready"}
"""The ledger's count that is shown beside each lane."""


def make_view(*, quiet: bool) -> PlainView | LiveView | SilentView:
    """The view for this output."""
    if quiet:
        return SilentView()
    console = Console(highlight=False)
    return LiveView(console) if console.is_terminal else PlainView(console)


class SilentView:
    """Shows nothing."""

    def note(self, text: str) -> None: ...
    def cluster(self, info: ClusterInfo, directory: Path) -> None: ...
    def starting(self, names: Sequence[str]) -> None: ...
    def ready(self, name: str) -> None: ...
    def evaluated(self, when: str, scores: dict[str, float]) -> None: ...
    def training(self, totals: RunTotals, ledger: AsyncLedger) -> None: ...
    def changed(self, event: str) -> None: ...
    def ended(self, summary: dict[str, Any], directory: Path) -> None: ...


class PlainView(SilentView):
    """One line for everything worth one: for logs, `ray job submit`, and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_s = time.monotonic()
        self._totals: RunTotals | None = None
        self._drops = Drops()
        self._folded = Folded()

    def note(self, text: str) -> None:
        self._say(text)

    def cluster(self, info: ClusterInfo, directory: Path) -> None:
        self._say(f"run directory {directory}")
        cpus, gpus = info.resources.get("CPU", 0), info.resources.get("GPU", 0)
        where = f"dashboard http://{info.dashboard_url}" if info.dashboard_url else "no dashboard"
        where += f" (it asks for the token in {info.token_path})" if info.token_path else ""
        self._say(f"Ray cluster {info.address} with {cpus:g} CPUs and {gpus:g} GPUs, {where}")
        if info.files:
            self._say(f"Ray's files are in {info.files}; its logs stay there when the run fails")

    def starting(self, names: Sequence[str]) -> None:
        self._say(f"starting {', '.join(names)}")

    def ready(self, name: str) -> None:
        self._say(f"{name} is ready")

    def evaluated(self, when: str, scores: dict[str, float]) -> None:
        parts = ", ".join(f"{name} {score:.3f}" for name, score in scores.items() if name != "mean")
        self._say(f"held-out {when}: mean {scores.get('mean', float('nan')):.3f} ({parts})")

    def training(self, totals: RunTotals, ledger: AsyncLedger) -> None:
        self._totals = totals
        self._say(f"training {totals.total_steps} steps")

    def changed(self, event: str) -> None:
        if event == "step" and self._totals is not None:
            self._say(step_line(self._totals))
        else:
            self._happened(event)

    def _happened(self, event: str) -> None:
        """An event that a person is told of."""
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
        for event, count in self._folded.untold().items():
            if is_shown(event.partition(" ")[0]):
                self._say(repeated(event, count))
        if summary["eval"]["after"]:
            print_table(self._console, end_table(summary))
        self._console.print(end_lines(summary, directory), soft_wrap=True)

    def _say(self, text: str) -> None:
        self._console.print(Text(f"{clock(time.monotonic() - self._started_s)}  {visible(text)}"), soft_wrap=True)


class LiveView(PlainView):
    """A bar while engines load, then the three lanes as they work."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._loading: TaskID | None = None
        self._ledger: AsyncLedger | None = None
        self._counts: dict[str, int] = {}
        self._asking: asyncio.Task[None] | None = None

    def starting(self, names: Sequence[str]) -> None:
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
        if self._progress is not None and self._loading is not None:
            self._progress.advance(self._loading)
            if self._progress.finished:
                self._progress.stop()
        super().ready(name)

    def training(self, totals: RunTotals, ledger: AsyncLedger) -> None:
        super().training(totals, ledger)
        self._ledger = ledger
        self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def changed(self, event: str) -> None:
        self._happened(event)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask_counts())

    def ended(self, summary: dict[str, Any], directory: Path) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._live is not None:
            self._live.stop()
        super().ended(summary, directory)

    def evaluated(self, when: str, scores: dict[str, float]) -> None:
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
    """The three lanes, the queue between them, staleness, reward, and what binds."""
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


def step_line(totals: RunTotals) -> str:
    """One committed step, for logs."""
    last = totals.last
    reward = f"spread {totals.spreads[-1]:.3f}" if totals.is_relative else f"reward {totals.rewards[-1]:+.3f}"
    return (
        f"step {totals.steps}/{totals.total_steps}  {reward}  "
        f"staleness {last['batch/staleness/max']}  "
        + "  ".join(f"{lane} {last[f'overlap/busy/{lane}']:.0%}" for lane in LANES)
        + f"  binds {totals.overlap().binding_stage}"
    )


def repeated(event: str, count: int) -> str:
    """An event that came for the count-th time.

    >>> repeated("group_lost", 1), repeated("group_lost", 16)
    ('group lost', 'group lost, 16 times so far')
    """
    text = event.replace("_", " ")
    return text if count == 1 else f"{text}, {count} times so far"


def warning_line(totals: RunTotals, count: int) -> str:
    """That the latest step moved nothing, or was of cut answers; count: of such steps so far."""
    movement = totals.movement
    step = f"step {totals.steps}/{totals.total_steps}"
    if movement.cause:
        text = f"{step} moved nothing: {movement.cause}"
        return f"warning: {text}" if count == 1 else f"warning: {count} steps moved nothing so far; {text}"
    text = f"{step}: {movement.cut}"
    return f"warning: {text}" if count == 1 else f"warning: nearly all answers cut in {count} steps so far; {text}"


def alarm_line(alarm: Mapping[str, Any], count: int = 1) -> str:
    """What a watch has seen, with evidence and remedy; count: of alarms of this kind so far."""
    said = "; ".join(str(alarm[key]) for key in ("message", "evidence", "remedy") if alarm.get(key))
    again = f" ({count} times)" if count > 1 else ""
    return f"alarm {alarm.get('kind')} at step {alarm.get('step')}{again}: {said}"


def reward_line(totals: RunTotals) -> str:
    """The reward so far, as a line of blocks; its spread in a group where its mean is always 0."""
    name, values, sign = ("spread", totals.spreads, "") if totals.is_relative else ("reward", totals.rewards, "+")
    if not values:
        return f"{name}  waiting for the first batch"
    recent = values[-40:]
    known = [r for r in recent if math.isfinite(r)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    blocks = "".join(
        " " if not math.isfinite(r) else BLOCKS[round((r - low) / (high - low) * 7) if high > low else 0]
        for r in recent
    )
    return f"{name}  {blocks}  {recent[-1]:{sign}.3f} (first {values[0]:{sign}.3f})"


def health_line(totals: RunTotals) -> str:
    """Staleness, labels and weights in one line."""
    worst = max(totals.staleness, default=0)
    hits = totals.cache_hits / max(1, totals.questions)
    return (
        f"staleness {worst} of {totals.staleness_bound}   labels {totals.labels}, invalid {totals.invalid}, "
        f"from cache {hits:.0%}   " + _live_weights(totals)
    )


def end_table(summary: dict[str, Any]) -> Table:
    """Held-out scores before and after."""
    table = Table(title="held-out adherence", title_justify="left")
    for column in ("principle", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "principle" else "right")
    before, after = summary["eval"]["before"] or {}, summary["eval"]["after"] or {}
    for name in [*(n for n in before if n != "mean"), *(["mean"] if before else [])]:
        change = after[name] - before[name] if name in after else None
        table.add_row(
            Text(visible(name), style="bold" if name == "mean" else ""),
            f"{before[name]:.3f}",
            f"{after[name]:.3f}" if name in after else "-",
            Text(f"{change:+.3f}", style="green" if change >= 0 else "red") if change is not None else "-",
        )
    return table


def end_lines(summary: dict[str, Any], directory: Path) -> Text:
    """The rest of the summary in a few lines; why a run was stopped, and how it is resumed, at the end. Of a failed run
    the cause is told on stderr, after these lines."""
    lines = [
        f"{summary['status']} after {_steps(summary)} in {summary['wall_s']:.0f} s",
        *(_figures(summary) if summary["steps"] else ()),
        *(f"warning: {text}" for text in summary.get("warnings", ())),
        f"not written: {summary['unwritten']}" if "unwritten" in summary else f"written to {directory}/summary.json",
    ]
    if summary["status"] == "stopped" and (end := summary.get("end")):
        lines += Ending(**{key: text or "" for key, text in end.items()}).lines()
    return Text(visible("\n".join(lines)))


def _figures(summary: dict[str, Any]) -> list[str]:
    """Of a run that has trained something."""
    overlap, weights, labels = summary["overlap"], summary["weights"], summary["labels"]
    shares = ", ".join(f"{lane} {share:.0%}" for lane, share in overlap["busy"].items())
    return [
        _reward(summary),
        f"staleness at most {summary['staleness']['max']} (bound {summary['staleness']['bound']})",
        f"busy {shares}; overlap efficiency {overlap['efficiency']:.2f}, {overlap['binding_stage']} binds",
        f"{labels['total']} labels, {labels['invalid']} invalid, {labels['cache_hits']} answered by the cache; "
        f"{summary['throughput']['rollouts_per_s']} rollouts/s",
        f"{weights['published']} policy versions published, {weights['attested']} attested"
        + (f", largest canary gap {weights['max_logprob_gap']:.1e} nats" if weights["published"] else ""),
    ]


def _reward(summary: dict[str, Any]) -> str:
    """How the reward moved; of rewards that are relative to the group, what moves instead."""
    reward = summary["reward"]
    if not reward["relative"]:
        if summary["steps"] and not summary["steps_moved"]:
            return f"reward {_number(reward['last'])}, of the policy as it was"
        return f"reward {_number(reward['first'])} -> {_number(reward['last'])}"
    told = (
        "the held-out scores above say what was learned"
        if summary["eval"]["before"]
        else "set evaluate.prompts, or [watch], to see what is learned"
    )
    first, last = (_number(reward["spread"][when]).lstrip("+") for when in ("first", "last"))
    return (
        "rewards compare the answers to one prompt, so their mean is always about 0; their spread in a group went "
        f"{first} -> {last} nats; {told}"
    )


def _steps(summary: dict[str, Any]) -> str:
    steps, moved = summary["steps"], summary["steps_moved"]
    return f"{steps} steps" + ("" if moved == steps else f", {moved or 'none'} of which moved the policy,")


def _live_weights(totals: RunTotals) -> str:
    gap = f", gap {totals.max_gap:.1e}" if totals.published_versions else ""
    return f"weights version {totals.published_versions} attested{gap}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def clock(seconds: float | None) -> str:
    """`01:23` or `1:02:03`."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
