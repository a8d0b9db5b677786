"""The chain of waits, in words."""

from __future__ import annotations

from typing import Any

from solon.doctor.status import RunStatus, who_waits


def make_standing(groups: dict[str, int], **changes: Any) -> RunStatus:
    fields = {"time": 0.0, "pid": 1, "host": "here", "still_s": 0.0, "out": (), "workers": (), "batch_groups": 4}
    return RunStatus.model_validate({**fields, "groups": groups, **changes})


def test_a_lost_worker_is_named_first():
    workers = ({"worker": "rollout-0", "state": "up"}, {"worker": "judge-0", "state": "being replaced"})
    assert who_waits(make_standing({}, workers=workers))[0] == "judge-0 is being replaced"


def test_the_holders_of_groups_are_named_with_the_oldest_group():
    out = [
        {"ordinal": 3, "attempt": 0, "state": "judging", "holder": "judge-0", "seconds": 40.2},
        {"ordinal": 9, "attempt": 2, "state": "generating", "holder": "rollout-1", "seconds": 7.0},
        {"ordinal": 5, "attempt": 0, "state": "judging", "holder": "judge-0", "seconds": 1.0},
    ]
    lines = who_waits(make_standing({"generating": 1}, out=out))
    assert "judge-0 holds 2 groups (judging), for 40 s the oldest, group 3" in lines
    assert "rollout-1 holds 1 group (generating), for 7 s the oldest, group 9, attempt 2" in lines


def test_the_learner_waits_for_a_batch_or_trains():
    assert "learn waits for a batch: 3 of 4 groups are ready" in who_waits(make_standing({"ready": 3}))
    assert "the learner trains on 4 groups" in who_waits(make_standing({"ready": 9, "leased": 4}))
    assert any(line.startswith("learn waits for older groups") for line in who_waits(make_standing({"ready": 4})))


def test_label_waits_for_a_judge_and_generate_for_an_engine_or_a_credit():
    lines = who_waits(make_standing({"generated": 1, "pending": 2}))
    assert "label has 1 group waiting for a judge" in lines
    assert "generate has 2 groups waiting for an engine" in lines
    assert any(line.startswith("generate waits for a credit") for line in who_waits(make_standing({"ready": 1})))
    assert not any("credit" in line for line in who_waits(make_standing({"generating": 1})))
