"""The same pairs put to the judge again and again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from solon.errors import InputError
from solon.feedback.interfaces import Item
from solon.feedback.trials.gold import GoldPair
from solon.feedback.watching.canary import Canary
from solon.records import Message
from solon.verdicts import Status, Verdict


def make_pair(number: int, *, target: float = 1.0, weights: tuple[float, ...] = (1.0,)) -> GoldPair:
    items = tuple(
        Item(
            task="pairwise",
            conversation=(Message(role="user", content=f"question {number}"),),
            answers=("yes", "no"),
            principle_id=f"p{place}",
            question="which ?",
        )
        for place in range(len(weights))
    )
    return GoldPair(items=items, weights=weights, target=target, prompt_id=str(number))


def verdicts(margins: Sequence[float | None]) -> list[Verdict]:
    return [Verdict(status=Status.TIMEOUT if m is None else Status.OK, margin=m) for m in margins]


def test_later_readings_are_compared_with_the_first():
    canary = Canary([make_pair(n, target=1.0 if n < 3 else 0.0) for n in range(4)])
    first = canary.read(0, verdicts([1.0, 2.0, -1.0, -0.5]))
    assert (first.accuracy, first.flips, first.largest_change, first.silent) == (0.75, 0.0, 0.0, 0.0)
    assert first.is_identical
    second = canary.read(50, verdicts([1.0, -2.0, -1.0, -0.25]))
    assert (second.accuracy, second.flips, second.largest_change) == (0.5, 0.25, 4.0)
    assert second.flipped == (1,)
    assert not second.is_identical
    assert canary.read(100, verdicts([1.0, 2.0, -1.0, -0.5])).is_identical


def test_the_last_bit_counts_for_identity_but_flips_nothing():
    canary = Canary([make_pair(0)])
    canary.read(0, verdicts([0.3]))
    reading = canary.read(50, verdicts([0.1 + 0.2]))
    assert not reading.is_identical
    assert reading.flips == 0.0
    assert 0 < reading.largest_change < 1e-15


def test_silence_is_wrong_and_a_verdict_that_came_or_went_is_a_flip():
    canary = Canary([make_pair(n) for n in range(3)])
    first = canary.read(0, verdicts([1.0, None, None]))
    assert (first.accuracy, first.silent, first.flips) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 0.0)
    second = canary.read(50, verdicts([None, 1.0, None]))
    assert second.flipped == (0, 1)
    assert not second.is_identical


def test_a_pair_is_the_weighted_mean_of_its_principles_and_silent_when_one_is():
    canary = Canary([make_pair(0, weights=(3.0, 1.0)), make_pair(1, weights=(1.0,))])
    assert [item.principle_id for item in canary.items] == ["p0", "p1", "p0"]
    canary.read(0, verdicts([1.0, -2.0, 1.0]))  # (3 - 2) / 4
    reading = canary.read(50, verdicts([1.0, -4.0, 1.0]))  # (3 - 4) / 4
    assert reading.flipped == (0,)
    assert reading.largest_change == pytest.approx(0.5)
    assert canary.read(60, verdicts([1.0, None, 1.0])).silent == 0.5


def test_pairs_that_gold_leaves_open_say_nothing_about_accuracy():
    canary = Canary([make_pair(0), make_pair(1, target=0.5)])
    assert canary.read(0, verdicts([1.0, -1.0])).accuracy == 1.0


def test_no_pairs_and_other_verdicts_are_refused():
    with pytest.raises(InputError, match="empty"):
        Canary([])
    with pytest.raises(ValueError, match="got 2 verdicts for 1 canary items"):
        Canary([make_pair(0)]).read(0, verdicts([1.0, 1.0]))


def test_the_canaries_of_a_resumed_run_are_compared_with_its_first_reading():
    first, resumed = (Canary([make_pair(n) for n in range(3)]) for _ in range(2))
    first.read(0, verdicts([1.0, 2.0, None]))
    resumed.restore(first.first)
    reading = resumed.read(50, verdicts([1.0, -2.0, None]))
    assert reading.flipped == (1,)
    other = Canary([make_pair(0)])
    with pytest.raises(InputError, match=r"first reading was of 3 canary pairs, the file has 1 now; restore it"):
        other.restore(first.first)
