"""The report: its numbers are those of the files, it needs no network, and text in it is text."""

from __future__ import annotations

import json
import os
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from solon.events import event_line
from solon.records import Span
from solon.report.pages import PLOTLY, asset
from solon.report.run_answers import extreme, fooled, heldout_pairs, telling_words
from solon.report.run_facts import (
    MEAN,
    agreement,
    change_by_principle,
    changed_settings,
    cost,
    faults,
    rose_in_training,
    rose_most,
)
from solon.report.run_report import write_report
from solon.runs.directory import RunDirectory
from solon.telemetry.trace import TraceFile
from tests.unit.attacks import ALL
from tests.unit.report.run_folders import audit, label, lines, make_run, opened, part, write

DEFAULTS = {"policy": "p", "judge": "j", "prompts": "t", "constitution": "c", "steps": 100}


def page(run: Path) -> str:
    return write_report(run, defaults=DEFAULTS).read_text(encoding="utf-8")


def body(text: str) -> str:
    """The page without its scripts."""
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_the_report_is_one_file_below_its_budget(run: Path) -> None:
    text = page(run)
    assert (run / "report.html").stat().st_size < 2_000_000
    assert not re.findall(r"""(?:src|href)=["']?(?!#)[^"'>\s]*//""", body(text))
    assert "default-src 'none'" in text


def test_the_reports_scripts_are_those_its_policy_names(run: Path) -> None:
    text = page(run)
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1))  # type: ignore[union-attr]
    from solon.report.pages import script_hash

    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(scripts) == 2
    assert all(script_hash(script) in policy for script in scripts)


def test_the_drawing_library_is_the_version_that_makes_the_figures() -> None:
    from plotly.offline import get_plotlyjs_version

    assert f"v{get_plotlyjs_version()}" in asset(PLOTLY)[:300]


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", texts=[text for text in ALL if not re.search("[\ud800-\udfff]", text)], steps=12)
    write(
        run / "heldout-after.json",
        [
            {
                "prompt_id": f"h{n}",
                "prompt": [{"role": "user", "content": text}],
                "answer": text,
                "scores": {text: 1.0},
                "score": 1.0,
                "tags": [text],
            }
            for n, text in enumerate(ALL)
        ],
    )
    text = page(run)
    shown = body(text)
    assert "<script>alert" not in shown
    assert "<img" not in shown
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]", text.replace(asset(PLOTLY), "")
    )


def test_scores_are_the_means_of_the_summary_with_paired_intervals(run: Path) -> None:
    rows = {row["name"]: row for row in change_by_principle(heldout_pairs(opened(run)))}
    assert rows["polite"]["change"].value == 1.0
    assert rows["brief"]["change"].value == 0.0
    assert rows[MEAN]["before"].value == 0.5
    assert rows[MEAN]["after"].value == 1.0


def test_a_principle_that_applies_to_some_prompts_counts_as_one_principle(run: Path) -> None:
    for moment, kept in (("before", 0.0), ("after", 1.0)):
        write(
            run / f"heldout-{moment}.json",
            [
                {
                    "prompt_id": str(n),
                    "prompt": [],
                    "answer": "x",
                    "score": kept,
                    "scores": {"brief": 0.0} | ({"kind": kept} if n == 0 else {}),
                }
                for n in range(10)
            ],
        )
    rows = {row["name"]: row for row in change_by_principle(heldout_pairs(opened(run)))}
    assert rows["kind"]["prompts"] == 1
    assert rows[MEAN]["after"].value == 0.5  # not 1/11


def test_what_rose_most_is_told_with_the_words_that_changed(run: Path) -> None:
    store = opened(run)
    pairs = heldout_pairs(store)
    told = rose_most(change_by_principle(pairs), pairs)
    assert told.startswith("polite rose most: 0.000 → 1.000, by +1.000")
    assert ("after", 0.0, 1.0) in telling_words(pairs, "polite")
    assert "“after” in 0% → 100%" in told


def test_a_stopped_run_tells_what_rose_in_training(run: Path) -> None:
    (run / "heldout-after.json").unlink()
    store = opened(run)
    assert rose_in_training(store) == "By the judge, no principle rose in training."
    with store.cursor() as cursor:
        cursor.execute("UPDATE labels SET margin = 5 WHERE principle_id = 'brief' AND ordinal >= 6")
    assert rose_in_training(store).startswith("By the judge, brief rose most in training: 0.575 → 0.993")


def test_best_and_worst_answers_come_with_their_verdicts(run: Path) -> None:
    store = opened(run)
    best, worst = extreme(store, best=True), extreme(store, best=False)
    assert [row["reward"] for row in best] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert worst[0]["reward"] == -1
    assert {label["principle"] for label in best[0]["labels"]} == {"polite", "brief"}


def test_answers_that_fooled_the_judge_are_those_that_the_auditor_disliked(run: Path) -> None:
    found = fooled(opened(run))
    assert found
    assert all(row["gold"] == -1.0 for row in found)
    assert found[0]["ordinal"] == 7
    (row,) = agreement(opened(run))
    assert (row["liked"], row["wrong"]) == (8, 5)


def test_cost_and_faults_are_sums_of_the_files(run: Path) -> None:
    store = opened(run)
    told = dict(cost(store, store.object("summary.json")))
    assert told["time of training"] == "1 min 23 s"
    assert told["answers generated"] == "16 with 32 tokens"
    assert told["questions to the judge"].startswith("32,")
    (fault,) = faults(store)
    assert (fault["event"], fault["times"], fault["cost"]) == ("worker_lost", 1, "2 s without a worker")


def test_settings_are_told_as_a_difference() -> None:
    config = {"policy": "p", "steps": 4, "learn": {"rate": 1.0}, "hash": "x", "new": 3}
    defaults = {"policy": "p", "steps": 100, "learn.rate": 1.0}
    assert changed_settings(config, defaults) == [("steps", "4", "100"), ("new", "3", "none")]


@pytest.mark.parametrize(
    "missing",
    [
        "config.json",
        "summary.json",
        "metrics.jsonl",
        "events.jsonl",
        "labels",
        "rollouts",
        "heldout-before.json",
        "audits.jsonl",
    ],
)
def test_a_run_that_lacks_a_file_has_a_report(run: Path, missing: str) -> None:
    path = run / missing
    if path.is_dir():
        (path / "part-000000.parquet").unlink()
    else:
        path.unlink()
    assert "What was asked for" in page(run)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "heldout-before.json", "metrics.jsonl", "trace.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", '"x"', "null", "\x00\x01", '{"time": "x", "eval": 3, "end": 4}']
)
def test_a_run_with_a_damaged_file_has_a_report(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    assert "What was asked for" in page(run)


HUGE = 10**400
BAD = {
    "a metric beyond all numbers": ("metrics.jsonl", {"step": 9, "time": HUGE, "learn/reward/mean": HUGE}),
    "a step beyond all numbers": ("metrics.jsonl", {"step": 2**70, "learn/reward/mean": 1.0}),
    "an event of another time": ("events.jsonl", {"time": -1e18, "event": "worker_lost", "cause": ["x"]}),
    "a downtime in words": ("events.jsonl", {"time": 1, "event": "worker_recovered", "downtime_s": "long"}),
    "margins as a list": (
        "audits.jsonl", {"ordinal": 0, "attempt": 0, "index": 0, "margins": [1], "gold_margins": {"polite": None}},
    ),
    "a label of a person without a text": ("human-labels.jsonl", {"label_id": 3, "created_ns": HUGE}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_line_with_wrong_values_costs_no_more_than_itself(run: Path, case: str) -> None:
    name, value = BAD[case]
    with (run / name).open("a") as file:
        file.write(json.dumps(value) + "\n")
    text = body(page(run))
    assert "polite rose most" in text
    assert "Best answers in training" in text


@pytest.mark.parametrize(
    "summary",
    [
        {"warnings": 5, "wall_s": "x", "end": ["a"], "eval": [1], "status": ["x"]},
        {"wall_s": HUGE, "groups": {"admitted": 10**30}, "status": "completed"},
        {"finished": {"a": 1}, "end": {"cause": {"b": 2}}, "steps": "many"},
    ],
)
def test_a_summary_with_wrong_values_costs_no_more_than_its_part(run: Path, summary: dict[str, Any]) -> None:
    (run / "summary.json").write_text(json.dumps(summary))
    assert "polite rose most" in body(page(run))


def test_a_pipe_in_place_of_a_file_is_named_and_not_opened(run: Path) -> None:
    (run / "events.jsonl").unlink()
    os.mkfifo(run / "events.jsonl")
    assert "is no regular file" in body(page(run))


@pytest.mark.parametrize("value", [float("nan"), 1e308, -800.0, None])
def test_margins_of_any_size_are_drawn(run: Path, value: float | None) -> None:
    rows = [label(o, i, p) | {"margin": value} for o in range(8) for i in (0, 1) for p in ("polite", "brief")]
    part(run, "labels", rows)
    assert "polite rose most" in body(page(run))


def test_of_a_healthy_run_no_part_is_left_out(run: Path) -> None:
    compared = [
        label(o, 0, "polite")
        | {
            "label_id": f"c{o}",
            "task": "pairwise",
            "rollouts": [0, 1],
            "consistent": o % 2 == 0,
            "position_offset": 0.5,
        }
        for o in range(8)
    ]
    part(run, "labels", compared, number=1)
    lines(run / "audits.jsonl", [audit(o, o % 3 == 0) | {"index": i} for o in range(40) for i in (0, 1)])
    (run / "trace.json").write_text('[\n{"ph":"X","pid":1,"tid":7,"ts":1,"dur":2,"cat":"learn","name":"step"},\n')
    text = page(run)
    assert "Files that could not be read" not in text
    for chart in ("heldout", "reward", "principles", "calibration", "position", "lanes", "timeline", "staleness", "kl"):
        assert f'id="chart-{chart}"' in text, chart


def test_resizes_losses_and_drains_are_in_the_timeline_and_in_a_table(run: Path) -> None:
    events = [
        event_line("resized", time_s=1.5, pool="rollout", before=1, after=3, reason="rollout can make 0.1 groups/s"),
        event_line("worker_draining", time_s=1.6, worker="rollout-1", left_s=None),
        event_line("lane_left", time_s=9.0, worker="rollout-1", returned=0),
    ]
    lines(run / "events.jsonl", events)
    directory = RunDirectory(run)
    trace = TraceFile(directory)
    trace.add([Span(lane="generate", worker="rollout-1", name="decode", start_s=1.0, end_s=2.0)])
    for line in events:
        trace.mark(line)
    trace.write()
    text = body(page(run))
    assert "Pools that changed" in text
    assert "1 to 3 workers" in text
    assert "rollout can make 0.1 groups/s" in text
    assert "resizes, faults and losses as diamonds" in text
    assert "worker draining at 0.6" in text
    assert "lane left at" not in text  # after the last span
