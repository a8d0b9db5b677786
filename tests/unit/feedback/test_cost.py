"""The cost of labels, computed by hand."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from solon.feedback.spending.cost import CallMeter, CostConfig, CostMeter, cost_table, information
from solon.verdicts import Status, Verdict

OK = Verdict(
    status=Status.OK,
    margin=math.log(3),
    judge="small",
    questions=2,
    prompt_tokens=200,
    cached_tokens=150,
    output_tokens=2,
    position_offset=0.1,
    consistent=True,
    usd=0.01,
)
TIE = Verdict(
    status=Status.TIE, margin=0.0, judge="small", questions=2, cache_hits=2, position_offset=0.2, consistent=False
)
LOST = Verdict(status=Status.TIMEOUT, margin=None, judge="large", level=1, questions=1, prompt_tokens=100, usd=0.02)
MUMBLED = Verdict(status=Status.UNPARSABLE, margin=None, judge="large", questions=1, prompt_tokens=98, output_tokens=1)


def meter() -> CostMeter:
    made = CostMeter(CostConfig(accelerators=2, usd_per_accelerator_hour=3.6))
    made.add([OK, TIE])
    made.add([LOST, MUMBLED])
    return made


def test_counts_and_quotients_match_hand_computed_values():
    cost = meter().cost(wall_s=10.0)
    assert (cost.labels, cost.valid, cost.questions, cost.cache_hits, cost.calls) == (4, 2, 6, 2, 4)
    assert (cost.tokens_logical, cost.tokens_computed) == (200 + 2 + 100 + 98 + 1, 401 - 150)
    assert cost.prefix_hit_share == pytest.approx(150 / 398)
    assert cost.cache_hit_share == pytest.approx(2 / 6)
    assert (cost.calls_per_s, cost.labels_per_s, cost.valid_labels_per_s) == pytest.approx((0.4, 0.4, 0.2))
    assert cost.accelerator_s == 20
    assert cost.accelerator_s_per_label == 10
    # 20 s at a thousandth of a dollar per second, plus the endpoints' charges; over two valid labels.
    assert cost.usd == pytest.approx(0.02 + 0.03)
    assert cost.usd_per_1k_valid == pytest.approx(25.0)
    assert cost.invalid == {"timeout": 1, "unparsable": 1}
    assert (cost.invalid_share, cost.escalation_share, cost.swap_share) == (0.5, 0.25, 0.5)
    assert cost.inconsistent_share == 0.5
    # A verdict of three to one holds 1 - H(1/4) = 0.1887 bits, a tie none.
    assert cost.bits == pytest.approx(0.18872, abs=1e-5)
    assert cost.usd_per_bit == pytest.approx(0.05 / 0.18872, abs=1e-4)


def test_judges_share_the_accelerator_cost_by_computed_tokens():
    costs = meter().by_judge(wall_s=10.0)
    assert costs["small"].accelerator_s == pytest.approx(20 * 52 / 251)
    assert costs["large"].accelerator_s == pytest.approx(20 * 199 / 251)
    assert costs["large"].usd_per_1k_valid is None  # no valid label: no price, not a price of zero


def test_without_measurements_no_quotient_is_computed():
    cost = CostMeter().cost(wall_s=0.0)
    assert cost.labels == 0
    assert {cost.labels_per_s, cost.usd_per_1k_valid, cost.prefix_hit_share, cost.invalid_share} == {None}


def test_information_is_that_of_the_probability():
    assert information(0.0) == 0.0
    assert information(math.log(3)) == information(-math.log(3)) == pytest.approx(0.18872, abs=1e-5)
    assert information(1e6) == 1.0
    assert information(40.0) == pytest.approx(1.0)


def test_a_cost_is_json_with_counts_and_quotients():
    value = json.loads(json.dumps(meter().cost(wall_s=10.0).to_dict()))
    assert value["valid"] == 2
    assert value["valid_labels_per_s"] == 0.2
    assert value["invalid"] == {"timeout": 1, "unparsable": 1}
    assert json.loads(json.dumps(CallMeter(questions=3).to_dict()))["questions"] == 3


def test_the_table_has_a_column_per_judge_and_a_row_per_failure():
    console = Console(file=io.StringIO(), width=100)
    console.print(cost_table(meter().by_judge(wall_s=10.0)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for words in ("small", "large", "USD per 1k valid labels", "invalid: timeout", "effective valid labels/s"):
        assert words in text
