"""The view: every stage of a run, in a terminal and in a pipe, for any texts."""

from __future__ import annotations

import asyncio
import io
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from solon.cli.run_end import end_lines, end_table
from solon.cli.run_lines import clock, reward_line, step_line
from solon.cli.view import LiveView, PlainView, SilentView, make_view, picture
from solon.ledger.ledger import Lease
from solon.protocols import LabelReport
from solon.records import Span, StepReport
from solon.telemetry.movement import Movement
from solon.telemetry.overlap import LANES
from solon.telemetry.totals import RunTotals

EVIL = "[red]evil[/red] [/] :boom: \x1b[2J\x1b]0;title\x07\r\x9b31m \u202egnp"
# rich's own escape codes: colours, cursor and line movement, hiding the cursor. No others may appear.
RICH_CODES = re.compile(r"\x1b\[[0-9;]*[mAK]|\x1b\[\?25[lh]|\r")


def make_console(*, terminal: bool) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=100, highlight=False, legacy_windows=False, _environ={}
    )


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def assert_harmless(text: str) -> None:
    rest = RICH_CODES.sub("", text)
    assert [c for c in rest if c != "\n" and not c.isprintable()] == []


@dataclass
class Cluster:
    """The contents of `cluster.launch.ClusterInfo`, without Ray."""

    address: str
    dashboard_url: str
    token_path: str
    files: str
    resources: dict[str, float]


class FakeLedger:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def counts(self) -> dict[str, int]:
        if self.error is not None:
            raise self.error
        return {"generating": 3, "judging": 2, "ready": 1}


def make_tally(rewards: list[float], *, total_steps: int = 30) -> RunTotals:
    totals = RunTotals(staleness_bound=4, total_steps=total_steps)
    totals.started_s = time.time() - 10
    now = time.time()
    for lane in LANES:
        totals._add_spans([Span(lane=cast(Any, lane), worker=lane, name="w", start_s=now - 5, end_s=now)])
    for step, reward in enumerate(rewards):
        lease = Lease(step=step, token=1, ordinals=(step,), staleness=(1,), payloads=())
        totals.stepped(lease, StepReport(step=step, metrics={"learn/reward/mean": reward}))
    totals.labelled(
        LabelReport(
            ordinal=0, attempt=0, num_rollouts=2, num_valid=2, reward_mean=1.0, labels=4, invalid=1, questions=4,
            cache_hits=2, prompt_tokens=10, cached_tokens=0, nbytes=0,
        )
    )  # fmt: skip
    return totals


COUNTS = {"admitted": 4, "committed": 2, "dropped": 0, "held": 2}


def make_summary(totals: RunTotals, **scores: Any) -> dict[str, Any]:
    summary = totals.summary(
        status="completed", counts={"admitted": 4, "committed": 2, "dropped": 0, "held": 2}, attested=1
    )
    return summary | {"eval": {"before": None, "after": None} | scores}


async def show_all(view: Any, totals: RunTotals, ledger: FakeLedger, *, text: str = "rollout-0") -> None:
    """A whole run, every text of which is `text`."""
    view.note(text)
    view.cluster(
        Cluster(address=text, dashboard_url=text, token_path=text, files=text, resources={"CPU": 2.0}),
        Path("runs") / text,
    )
    view.starting([text, "judge-0"])
    view.ready(text)
    view.ready("judge-0")
    view.evaluated("before", {text: 0.5, "mean": 0.5})
    view.training(totals, ledger)
    for event in ("step", f"group_dropped {text}", "late_label_refused", "published"):
        view.changed(event)
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    view.evaluated("after", {text: 0.75, "mean": 0.75})
    summary = make_summary(totals, before={text: 0.5, "gone": 0.1, "mean": 0.5}, after={text: 0.75, "mean": 0.75})
    view.ended(summary, Path("runs") / text)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("rewards", [[0.5], [0.5, math.nan, math.inf, -0.25], [math.nan] * 3, [1.0] * 60])
async def test_a_run_is_shown_from_beginning_to_end(terminal: bool, rewards: list[float]):
    console = make_console(terminal=terminal)
    view = LiveView(console) if terminal else PlainView(console)
    await show_all(view, make_tally(rewards), FakeLedger())
    text = shown(console)
    for words in ("rollout-0 is ready", "training 30 steps", "held-out before", "mean 0.750", "+0.250", "labels"):
        assert words in text
    if not terminal:
        assert "\x1b" not in text
        assert f"step {len(rewards)}/30" in text


@pytest.mark.parametrize("terminal", [False, True])
async def test_no_text_of_models_or_files_reaches_the_terminal_as_markup_or_control(terminal: bool):
    console = make_console(terminal=terminal)
    view = LiveView(console) if terminal else PlainView(console)
    await show_all(view, make_tally([0.5]), FakeLedger(), text=EVIL)
    text = shown(console)
    assert_harmless(text)
    assert "\x1b[2J" not in text
    assert "[red]evil[/red]" in text
    assert ":boom:" in text


def test_relative_rewards_are_shown_by_their_spread_and_not_by_their_mean():
    totals = make_tally([0.0, 0.0])
    totals.is_relative, totals.spreads = True, [1.25, 0.75]
    assert "spread 0.750" in step_line(totals)
    assert reward_line(totals).startswith("spread")
    text = end_lines(make_summary(totals), Path("runs/x")).plain
    assert "1.250 -> 0.750 nats; set evaluate.prompts" in text
    assert "reward +0.000 -> +0.000" not in text
    scored = end_lines(make_summary(totals, before={"mean": 0.5}), Path("runs/x")).plain
    assert "held-out scores above" in scored


async def test_a_closed_ledger_does_not_end_the_view():
    console = make_console(terminal=True)
    await show_all(LiveView(console), make_tally([0.5]), FakeLedger(ConnectionError("gone")))
    assert "completed after 1 steps" in shown(console)


async def test_a_run_that_failed_before_training_is_shown():
    totals = RunTotals(staleness_bound=4, total_steps=30)
    for view in (PlainView(make_console(terminal=False)), LiveView(make_console(terminal=True)), SilentView()):
        view.starting(["rollout-0"])
        view.ended(make_summary(totals) | {"status": "failed"}, Path("runs/x"))


def test_the_live_display_has_three_lanes_and_the_queues_between_them():
    console = make_console(terminal=False)
    console.print(picture(make_tally([0.1, 0.4]), {"generating": 3, "judging": 2, "ready": 1}))
    text = shown(console)
    assert [line.split()[0] for line in text.splitlines()] == [
        "step", "generate", "label", "learn", "reward", "staleness",
    ]  # fmt: skip
    assert "3 generating" in text
    assert "about" in text


def test_the_live_display_waits_before_the_first_step():
    console = make_console(terminal=False)
    console.print(picture(RunTotals(staleness_bound=4, total_steps=3), {}))
    assert "waiting for the first batch" in shown(console)


@pytest.mark.parametrize(
    ("rewards", "blocks"),
    [
        ([0.0, 1.0], "▁█"),
        ([1.0, 1.0], "▁▁"),
        ([0.0, math.nan, 1.0], "▁ █"),
        ([-math.inf, 3.0], " ▁"),
        ([math.nan], " "),
    ],
)
def test_the_reward_line_has_one_block_per_step_and_a_gap_where_none_is_known(rewards: list[float], blocks: str):
    assert f"reward  {blocks}  " in reward_line(make_tally(rewards))


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (83.9, "01:23"), (3723, "1:02:03"), (None, "--:--")])
def test_a_duration_reads_as_a_clock(seconds: float | None, text: str):
    assert clock(seconds) == text


def test_the_view_suits_the_output(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "")
    assert type(make_view(quiet=True)) is SilentView
    assert type(make_view(quiet=False)) is PlainView  # pytest's output is no terminal


def without_scores(totals: RunTotals, **changes: Any) -> str:
    console = make_console(terminal=False)
    PlainView(console).ended(make_summary(totals) | changes, Path("runs/x"))
    return shown(console)


def test_a_run_without_evaluation_prints_no_table_and_without_a_version_no_gap():
    nothing = without_scores(RunTotals(staleness_bound=4, total_steps=30))
    for words in ("adherence", "not evaluated", "canary gap"):
        assert words not in nothing
    published = make_tally([0.5])
    published.published(1, [], 2e-5, Span(lane="publish", worker="p", name="publish", start_s=0, end_s=1))
    assert "largest canary gap 2.0e-05 nats" in without_scores(published)


def still_tally(moved: list[bool]) -> RunTotals:
    """The answers of every step are cut; masked where nothing moves."""
    totals = RunTotals(staleness_bound=4, total_steps=20, movement=Movement(max_tokens=16, truncated="mask"))
    for step, has_moved in enumerate(moved):
        cut = {"learn/truncated/share": 0.0 if has_moved else 1.0, "learn/rollouts/sum": 16.0, "learn/reward/mean": 0.1}
        lease = Lease(step=step, token=1, ordinals=(step,), staleness=(0,), payloads=())
        totals.stepped(lease, StepReport(step=step, metrics=cut, moved=has_moved))
    return totals


def test_a_step_that_moved_nothing_causes_a_warning_with_remedy_but_not_at_every_step():
    console = make_console(terminal=False)
    view, totals = PlainView(console), still_tally([])
    view.training(totals, cast(Any, FakeLedger()))
    for step in range(16):
        lease = Lease(step=step, token=1, ordinals=(step,), staleness=(0,), payloads=())
        metrics = {"learn/truncated/share": 1.0, "learn/rollouts/sum": 16.0}
        totals.stepped(lease, StepReport(step=step, metrics=metrics, moved=False))
        view.changed("nothing_moved")
    told = [line.partition("  ")[2] for line in shown(console).splitlines() if "moved nothing" in line]
    assert len(told) == 3
    assert told[0].startswith("warning: step 1/20 moved nothing: all 16 answers were cut at rollout.max_tokens = 16")
    assert "raise rollout.max_tokens" in told[0]
    assert told[2].startswith("warning: 16 steps moved nothing so far; step 16/20 moved nothing: ")


def test_the_last_lines_say_how_many_steps_moved_the_policy_and_what_went_wrong():
    none = without_scores(still_tally([False, False]), warnings=["17 of 21 finished groups were dropped"])
    assert "after 2 steps, none of which moved the policy, in" in none
    assert "reward +0.100, of the policy as it was" in none
    assert "->" not in none
    assert "warning: 17 of 21 finished groups were dropped" in none
    some = without_scores(still_tally([True, False, False]))
    assert "after 3 steps, 1 of which moved the policy, in" in some
    assert "which moved" not in without_scores(still_tally([True]))


def test_a_repeated_event_is_shown_with_its_count_and_the_remaining_counts_at_the_end():
    console = make_console(terminal=False)
    view, totals = PlainView(console), make_tally([0.1])
    view.training(totals, cast(Any, FakeLedger()))
    for _ in range(18):
        view.changed("group_lost")
    view.changed("worker_lost")
    view.ended(make_summary(totals), Path("runs/x"))
    told = [line.partition("  ")[2] for line in shown(console).splitlines() if "lost" in line]
    assert told == [
        "group lost", "group lost, 4 times so far", "group lost, 16 times so far", "worker lost",
        "group lost, 18 times so far",
    ]  # fmt: skip


def test_groups_dropped_for_one_reason_are_reported_together_with_a_remedy():
    console = make_console(terminal=False)
    view, totals = PlainView(console), make_tally([0.1])
    view.training(totals, cast(Any, FakeLedger()))
    for count in range(40):
        totals.last_drop = f"fewer than 2 rollouts with a valid label (low_mass {count + 2})"
        view.changed("group_dropped")
    told = [line for line in shown(console).splitlines() if "dropped" in line]
    assert len(told) == 3
    assert "16 groups dropped: the judge is unsure (low_mass)" in told[-1]
    assert "feedback.template" in told[-1]


def test_every_evaluation_has_its_column_whatever_it_is_called():
    scores = {"before": None, "half-way": {"brief": 0.5, "mean": 0.5}, "after": {"brief": 0.75, "mean": 0.75}}
    table = end_table({"eval": scores})
    assert [column.header for column in table.columns] == ["principle", "half-way", "after", "change"]
    assert [list(column.cells) for column in table.columns[1:3]] == [["0.500", "0.500"], ["0.750", "0.750"]]
    assert [str(cell) for cell in table.columns[3].cells] == ["+0.250", "+0.250"]
    assert [column.header for column in end_table({"eval": {"after": {"mean": 1.0}}}).columns][1:] == [
        "after",
        "change",
    ]
