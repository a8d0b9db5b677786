"""The record of each group, from admission to its end."""

from __future__ import annotations

import itertools

from solon.clock import Clock
from solon.ledger.ledger import Grant, Lease, Work
from solon.protocols import GenerationReport, LabelReport
from solon.telemetry.groups import GroupRecords


def ticking() -> Clock:
    """A second later at every look."""
    return Clock(wall=itertools.count(1.0).__next__)


def generated(ordinal: int, attempt: int = 0) -> GenerationReport:
    return GenerationReport(ordinal=ordinal, attempt=attempt, head=3, num_tokens=12, nbytes=1)


def labelled(ordinal: int, attempt: int = 0) -> LabelReport:
    return LabelReport(
        ordinal=ordinal, attempt=attempt, num_rollouts=2, num_valid=2, reward_mean=0.5, labels=4, invalid=1,
        questions=4, cache_hits=0, prompt_tokens=1, cached_tokens=0, nbytes=1,
    )  # fmt: skip


def lease(step: int, *ordinals: int) -> Lease:
    return Lease(step=step, token=1, ordinals=ordinals, staleness=tuple(range(len(ordinals))), payloads=())


def through(records: GroupRecords, ordinal: int) -> None:
    records.granted("rollout-0", [Grant(ordinal, 0, 3)])
    records.generated(generated(ordinal))
    records.taken("judge-1", [Work(ordinal, 0, None)])
    records.labelled(labelled(ordinal))


def test_a_trained_group_has_one_line_from_admission_to_commit():
    records = GroupRecords(ticking())
    through(records, 7)
    through(records, 8)
    first, second = records.trained(lease(4, 7, 8))
    assert first == {
        "time": 9.0, "ordinal": 7, "attempt": 0, "outcome": "trained", "step": 4, "reason": None, "staleness": 0,
        "version": 3, "admitted": 1.0, "granted": 1.0, "generated": 2.0, "taken": 3.0, "labelled": 4.0,
        "engine": "rollout-0", "judge": "judge-1", "tokens": 12, "labels": 4, "invalid": 1, "reward": 0.5,
    }  # fmt: skip
    assert (second["ordinal"], second["staleness"]) == (8, 1)
    assert (
        first["admitted"]
        <= first["granted"]
        <= first["generated"]
        <= first["taken"]
        <= first["labelled"]
        <= first["time"]
    )
    assert records.state() == []


def test_a_group_that_is_generated_again_keeps_its_admission_and_loses_what_was_made():
    records = GroupRecords(ticking())
    through(records, 0)
    records.granted("rollout-1", [Grant(0, 1, 4)])
    (open_record,) = records.state()
    assert open_record["admitted"] == 1.0
    assert open_record["granted"] == 5.0
    assert open_record["engine"] == "rollout-1"
    assert open_record["generated"] is open_record["labelled"] is open_record["judge"] is None
    records.generated(generated(0, attempt=1))
    (line,) = records.trained(lease(1, 0))
    assert line["attempt"] == 1


def test_a_dropped_group_says_why_and_a_late_label_opens_no_new_record():
    records = GroupRecords(ticking())
    records.granted("rollout-0", [Grant(3, 0, 0)])
    records.generated(generated(3))
    line = records.dropped(3, "fewer than 2 rollouts with a valid label")
    assert (line["outcome"], line["step"], line["labelled"]) == ("dropped", None, None)
    assert line["reason"].startswith("fewer than 2")
    records.labelled(labelled(3))
    assert records.state() == []


def test_a_resumed_run_knows_when_its_groups_were_admitted():
    before = GroupRecords(ticking())
    through(before, 5)
    after = GroupRecords(ticking())
    after.restore(before.state())
    after.granted("rollout-0", [Grant(5, 0, 3)])  # saved as it was before it was handed out
    (line,) = after.trained(lease(0, 5))
    assert line["admitted"] == 1.0


def test_a_group_of_which_nothing_is_known_still_has_a_line():
    (line,) = GroupRecords(ticking()).trained(lease(0, 9))
    assert (line["ordinal"], line["outcome"], line["admitted"], line["engine"]) == (9, "trained", None, None)
