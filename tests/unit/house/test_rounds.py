"""Two sides that take turns in a benchmark."""

from __future__ import annotations

from benchmarks._rounds import Rounds


def test_the_sides_alternate_and_the_ratio_is_the_median_of_the_rounds():
    order = []
    ours, theirs = iter([2.0, 1.0, 4.0]), iter([1.0, 1.0, 1.0])

    def side(name, seconds):
        def work(number):
            order.append((number, name))
            return next(seconds)

        return work

    rounds = Rounds("tokens/s", 8.0)
    rounds.take(3, side("ours", ours), side("bare", theirs))
    assert order == [(0, "bare"), (0, "ours"), (1, "ours"), (1, "bare"), (2, "bare"), (2, "ours")]
    rate, ratio = rounds.rows(">= 0.95")
    assert (rate.ours, rate.reference) == (4.0, 8.0)
    assert (ratio.ours, ratio.met) == (0.5, False)
    assert "0.25 to 1" in ratio.metric
