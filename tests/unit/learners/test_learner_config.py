"""Refusals of `[learn]`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from learners.config import LearnConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bypass": True, "importance": "none"}, "2 optimiser steps per batch, expected 1"),
        ({"bypass": True, "epochs": 1, "minibatches": 1}, "expected 'none'"),
        ({"importance": "none"}, "expected 'token', 'icepop' or 'sequence'"),
        ({"advantages": "group", "critic_warmup_steps": 3}, "has no critic"),
        ({"advantages": "group", "value_clip": 0.2}, "has no critic"),
        ({"advantages": "group", "truncated": "bootstrap"}, "no critic to ask"),
        ({"truncated": "drop"}, "Input should be"),
        ({"schedule": "cosine"}, "without schedule_steps"),
        ({"schedule_steps": 5, "warmup_steps": 5}, "ends before warmup_steps"),
        ({"clip": 0.2}, "Extra inputs"),
        ({"lam": 1.5}, "less than or equal to 1"),
        ({"device": "tpu"}, "match pattern"),
        ({"lora": {"rank": 4}}, "Extra inputs"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_with_a_reason(changes, message):
    with pytest.raises(ValidationError, match=message):
        LearnConfig(**changes)


def test_bypass_is_accepted_with_one_optimiser_step():
    assert LearnConfig(bypass=True, importance="none", epochs=1, minibatches=1).steps_per_batch == 1


def test_the_rate_rises_then_falls_to_a_tenth_and_is_never_zero():
    for schedule in ("linear", "cosine"):
        config = LearnConfig(schedule=schedule, warmup_steps=4, schedule_steps=10)
        rates = [config.rate(step) for step in range(15)]
        assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
        assert rates[4:] == sorted(rates[4:], reverse=True)
        assert rates[10:] == pytest.approx([0.1] * 5)
    assert LearnConfig().rate(10**6) == 1.0


def test_the_configuration_is_read_without_torch():
    code = "import sys, learners.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
