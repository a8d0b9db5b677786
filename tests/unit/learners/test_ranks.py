"""Two ranks train what one process trains: every objective, all weights and adapters, with accumulation."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from learners.core.agreement import Agreement
from learners.core.processes import run_on_ranks
from learners.core.ranks import ALONE, RankFailedError, Ranks, deal, divided
from learners.direct.config import DirectConfig
from learners.direct.pairs import AnswerPair
from learners.offline import train_on_pairs
from solon.errors import InputError, RunFailedError
from tests.trainings import OFFLINE, RUNS, Result, apart, train_all
from tests.unit.learner_builders import write_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


CASES = [(name, {}) for name in (*RUNS, *OFFLINE)] + [(name, {"lora": True}) for name in ("ppo", "dpo")]


@pytest.fixture(scope="module")
def results(llama: str) -> dict[int, list[list[Result]]]:
    """By number of ranks, of every rank, the results of all cases."""
    return {2: run_on_ranks(2, train_all, CASES, llama), 1: [train_all(ALONE, CASES, llama)]}


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


def test_a_preference_stage_on_two_ranks_saves_the_policy_of_one_process(llama: str, tmp_path: Path):
    pairs = [
        AnswerPair(prompt=(5, 6, 7 + n % 3), first=(8, 9 + n % 5, 1), second=(10 + n % 7, 1), p=0.9) for n in range(12)
    ]
    config = DirectConfig(learning_rate=1e-3, batch=6, threads=1)
    saved = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        train_on_pairs(llama, pairs, config.model_copy(update={"num_ranks": ranks}), save_to=out)
        saved.append(load_file(out / "model.safetensors"))
    alone, together = saved
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert float((value - together[name]).norm()) <= 1e-5 * float(value.norm()), name


def die_or_wait(ranks: Ranks, rank: int, how: str) -> float:
    """One rank fails, and the others wait for it."""
    if ranks.rank == rank and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ranks.rank == rank and how == "input":
        raise InputError("got 1 answer, expected 2; write another")
    return ranks.total([1.0])[0]


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [("kill", RunFailedError, "rank 1 of 2 was ended by signal 9"), ("input", InputError, "got 1 answer, expected 2")],
)
def test_a_rank_that_fails_ends_all_and_its_error_is_told(how: str, error: type[Exception], words: str):
    with pytest.raises(error, match=re.escape(words)):
        run_on_ranks(2, die_or_wait, 1, how, timeout_s=30)


def test_a_rank_that_holds_another_value_is_named(llama: str):
    found = run_on_ranks(2, differing, timeout_s=30)
    assert found == ["rank 1 of 2 differs from the others in the step"] * 2


def differing(ranks: Ranks) -> str:
    """What a rank says of another value."""
    try:
        Agreement(ranks, [], []).require({"the step": min(ranks.rank, 1)})
    except RankFailedError as failure:
        return str(failure).partition(", expected")[0]
    return ""
