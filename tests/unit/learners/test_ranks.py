"""Two ranks train what one process trains: every objective, all weights and adapters, with accumulation."""

from __future__ import annotations

import pytest

from learners.core.ranks import ALONE, deal, divided
from tests.ranks import on_ranks
from tests.trainings import OFFLINE, RUNS, Result, apart, train_all
from tests.unit.learner_builders import write_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


CASES = [(name, {}) for name in (*RUNS, *OFFLINE)] + [(name, {"lora": True}) for name in ("ppo", "dpo")]


@pytest.fixture(scope="module")
def results(llama: str) -> dict[int, list[list[Result]]]:
    """By number of ranks, of every rank, the results of all cases."""
    return {2: on_ranks(2, train_all, CASES, llama), 1: [train_all(ALONE, CASES, llama)]}


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}{'-lora' if CASES[n][1] else ''}")
def test_two_ranks_train_what_one_process_trains(results: dict[int, list[list[Result]]], case: int):
    (first, second), (alone,) = ([one[case] for one in results[size]] for size in (2, 1))
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert apart(first, second) == 0
    assert apart(alone, first) < 1e-5


def test_every_rank_takes_as_many_turns_and_every_item_counts_once():
    turns = deal([3, 9, 4, 8, 1], 3)
    assert len({len(some) for some in turns}) == 1
    assert sorted(place for some in turns for place, counts in some if counts) == [0, 1, 2, 3, 4]


def test_microbatches_are_cut_so_that_ranks_finish_together():
    lengths = [5] * 12

    def make(limit: int) -> list[int]:
        return [min(limit // 5, 12 - first) for first in range(0, 12, max(1, limit // 5))]

    assert divided(make, float, most=1000, total=sum(lengths), ranks=1) == [12]
    assert divided(make, float, most=1000, total=sum(lengths), ranks=2) == [6, 6]
    assert divided(make, float, most=15, total=sum(lengths), ranks=2) == [3, 3, 3, 3]
