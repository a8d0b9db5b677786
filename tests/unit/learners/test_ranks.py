"""Two ranks train what one process trains: every objective, all weights and adapters, with accumulation."""

from __future__ import annotations

import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from learners.core.agreement import Agreement
from learners.core.processes import run_on_ranks
from learners.core.ranks import ALONE, RankFailedError, Ranks, deal, divided
from learners.direct.config import DirectConfig
from learners.direct.pairs import AnswerPair
from learners.offline import train_on_pairs
from solon.errors import InputError, RunFailedError
from tests.trainings import OFFLINE, RUNS, Result, apart, train, train_all
from tests.unit.learner_builders import write_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"))


SHARED = {"critic": "shared", "value_coefficient": 0.5}
CASES = [(name, {}) for name in (*RUNS, *OFFLINE)] + [(name, {"lora": True}) for name in ("ppo", "dpo")]
# No warm-up: it begins where the bias of the value head has a gradient of rounding alone, of which AdamW makes a step.
CASES += [("ppo", SHARED), ("ppo", SHARED | {"lora": True})]


@pytest.fixture(scope="module")
def results(llama: str) -> dict[int, list[list[Result]]]:
    """By number of ranks, of every rank, the results of all cases."""
    return {2: run_on_ranks(2, train_all, CASES, llama), 1: [train_all(ALONE, CASES, llama)]}


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda n: "-".join([CASES[n][0], *CASES[n][1]]))
def test_two_ranks_train_what_one_process_trains(results: dict[int, list[list[Result]]], case: int):
    (first, second), (alone,) = ([one[case] for one in results[size]] for size in (2, 1))
    assert first["losses"] == second["losses"]
    # Terms of a loss cancel: what is equal to 1e-5 are they.
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=3e-6)
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert apart(first, second) == 0
    assert apart(alone, first) < 1e-5


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[Result]]]:
    """As `results`, for a model with a head of its own."""
    untied = write_llama(tmp_path_factory.mktemp("untied"), tied=False, num_key_value_heads=4)
    return {2: run_on_ranks(2, train_all, OTHERS, untied), 1: [train_all(ALONE, OTHERS, untied)]}


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("online_dpo", {"lora": ("q_proj", "lm_head"), "minibatches": 3}),
    ("group_relative", {"lora": ("q_proj", "lm_head"), "bypass": True, "importance": "none", "minibatches": 1}),
    ("group_relative", {"gradient_checkpointing": True, "epochs": 2}),
    ("group_relative", {"grid": "w4a16-g32", "dtype": "bfloat16", "serving_dtype": "float32"}),
    ("ppo", {"dtype": "bfloat16"}),
]


@pytest.mark.parametrize("case", range(len(OTHERS)), ids=lambda n: f"{OTHERS[n][0]}-{n}")
def test_so_do_adapters_on_the_head_recomputed_activations_and_weights_on_a_grid(
    others: dict[int, list[list[Result]]], case: int
):
    (first, second), (alone,) = ([one[case] for one in others[size]] for size in (2, 1))
    assert first["losses"] == second["losses"]
    assert apart(first, second) == 0
    if OTHERS[case][1].get("dtype") == "bfloat16":  # rounding moves later steps
        assert first["losses"][0] == pytest.approx(alone["losses"][0], rel=0.02, abs=1e-3)
        assert apart(alone, first) < 0.02
    else:
        assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
        assert apart(alone, first) < 1e-5


def scored_wrongly(ranks: Ranks, model: str) -> str:
    """What is raised when the second rank scores a batch with numbers that are not finite."""
    from learners.core.policy import Policy

    score = Policy.score

    def fails(self: Policy, *arguments: Any, **options: Any) -> Any:
        found = score(self, *arguments, **options)
        return replace(found, logprobs_M=found.logprobs_M * math.nan) if ranks.rank == 1 else found

    Policy.score = fails  # type: ignore[method-assign]
    try:
        train(ranks, "group_relative", model, {})
    except RankFailedError as failure:
        return str(failure)
    return ""


def test_a_rank_that_scores_with_numbers_that_are_not_finite_is_named(llama: str):
    for said in run_on_ranks(2, scored_wrongly, llama, timeout_s=60):
        assert said.startswith("rank 1 of 2 computed a number that is not finite")


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
