from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config.run_file import RunFile
from cluster.preflight.checks import check_inputs
from solon.feedback.labelling.dataset import load_answers
from solon.files.plain_text import excerpt
from solon.files.prompts import load_prompts
from solon.records import Feedback, Label
from solon.runs.directory import RunDirectory
from solon.runs.quarantine import MOST_REASONS, NAME, ROWS_PER_REASON, Quarantine
from solon.telemetry.recorder import Recorder
from solon.telemetry.totals import RunTotals
from solon.verdicts import Status, Verdict
from tests.unit.run_files import make_run


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory.reopen(tmp_path / "run")
    yield directory
    directory.close()


def rows(directory: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory.path / NAME).read_text().splitlines()]


def test_a_row_has_time_place_and_reason(directory: RunDirectory):
    quarantine = Quarantine(directory)
    quarantine.add(stage="prompts", reason="not UTF-8", line=17, excerpt="\x1b[2Jone\ntwo")
    quarantine.add(stage="labels", reason="abstain", ordinal=3)
    first, second = rows(directory)
    assert first.pop("time") > 1e9
    assert first == {"stage": "prompts", "line": 17, "excerpt": "\\x1b[2Jone two", "reason": "not UTF-8", "count": 1}
    assert (second["ordinal"], second["excerpt"]) == (3, "")


def test_the_first_rows_of_a_reason_are_kept_and_all_are_counted(directory: RunDirectory):
    quarantine = Quarantine(directory)
    for line in range(12_345):
        quarantine.add(stage="prompts", reason=f"has {line} turns, 'x{line}' among them", line=line)
    assert quarantine.total == 12_345
    counts = [row["count"] for row in rows(directory)]
    assert counts == [*range(1, ROWS_PER_REASON + 1), *range(1000, 10_001, 1000)]
    quarantine.close()
    assert rows(directory)[-1]["count"] == 12_345
    assert quarantine.summary() == {"total": 12_345, "by_stage": {"prompts": {"has 0 turns, 'x0' among them": 12_345}}}


def test_an_unlimited_number_of_reasons_is_bounded_too(directory: RunDirectory):
    quarantine = Quarantine(directory)
    letters = "abcdefghij"
    for number in range(5000):
        reason = "".join(letters[int(digit)] for digit in str(number))
        quarantine.add(stage="labels", reason=reason, excerpt="x" * 10**6)
    assert quarantine.total == 5000
    assert len(quarantine.summary()["by_stage"]["labels"]) == MOST_REASONS + 1
    assert (directory.path / NAME).stat().st_size < 400_000


def test_a_reopened_directory_continues_its_counts_and_reads_its_input_again(tmp_path: Path):
    for start in range(1, 4):
        directory = RunDirectory.reopen(tmp_path / "run")
        quarantine = Quarantine(directory, reread=("prompts",))
        for _ in range(150):
            quarantine.add(stage="labels", reason="abstain")
        quarantine.add(stage="prompts", reason="empty", line=5)
        assert quarantine.summary()["by_stage"] == {"labels": {"abstain": 150 * start}, "prompts": {"empty": 1}}
        quarantine.close()
        assert sum(row["stage"] == "prompts" for row in rows(directory)) == 1
        directory.close()


def test_foreign_lines_in_the_file_are_ignored(directory: RunDirectory):
    (directory.path / NAME).write_text('nonsense\n[]\n{"stage": 1}\n{"stage": "a", "reason": "b", "count": 7}\n')
    quarantine = Quarantine(directory)
    quarantine.add(stage="a", reason="b")
    assert quarantine.total == 8


def test_many_threads_lose_no_row(directory: RunDirectory):
    quarantine = Quarantine(directory)

    def work() -> None:
        for _ in range(200):
            quarantine.add(stage="labels", reason="abstain")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert quarantine.total == 1600
    assert [row["count"] for row in rows(directory)] == [*range(1, ROWS_PER_REASON + 1), 1000]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=600) | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=300))
def test_an_excerpt_of_any_text_is_one_short_harmless_line(text: str):
    shown = excerpt(text)
    assert len(shown) <= 200
    assert shown.isprintable()


def test_broken_rows_of_both_kinds_of_files_carry_their_content(tmp_path: Path):
    good = [json.dumps({"prompt": f"p{n}", "answers": ["a", "b"]}) for n in range(300)]
    broken = ['{"prompt": "cut of', '{"prompt": 3}']
    path = tmp_path / "p.jsonl"
    path.write_bytes("\n".join([*good, *broken]).encode() + b"\n\xff\xfe\n")
    refused = load_prompts(path).bad
    assert [row.place.number for row in refused] == [301, 302, 303]
    assert [row.excerpt for row in refused] == ['{"prompt": "cut of', "{'prompt': 3}", "\\xff\\xfe"]
    assert [row.excerpt for row in load_answers(path, least=2).skipped] == [row.excerpt for row in refused]


def test_preflight_passes_on_the_rows_that_it_refused(tmp_path: Path):
    path = make_run(tmp_path, '[feedback]\ntemplate = "compact"\n')
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write("".join(json.dumps({"prompt": f"{n}"}) + "\n" for n in range(200)) + "[]\n")
    (found,) = check_inputs(RunFile.load(path)).refused["prompts"]
    assert (found.place.number, found.reason) == (204, "holds a list, expected an object with `prompt`")


def test_an_invalid_label_of_a_run_is_in_quarantine(directory: RunDirectory):
    recorder = Recorder(
        directory,
        RunTotals(staleness_bound=1, total_steps=1),
        open_payload=lambda payload_ref: payload_ref,
        provenance={},
        on_failure=lambda _: None,
    )
    label = Label(
        task="pointwise",
        principle_id="p",
        rollouts=(0,),
        verdict=Verdict(status=Status.ABSTAIN, margin=None, detail="margin of nan"),
    )
    recorder._keep_labels(Feedback(ordinal=9, attempt=0, rewards_G=(None,), labels=(label,)))
    recorder.close()
    (row,) = rows(directory)
    assert (row["stage"], row["ordinal"], row["reason"], row["excerpt"]) == ("labels", 9, "abstain", "margin of nan")
