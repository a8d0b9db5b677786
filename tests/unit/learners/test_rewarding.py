"""Reward models as judges: members, centre, scale and figures; and how far a policy has moved."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.core.config import NetworkConfig
from learners.drift import drift
from learners.networks.reward_model import PreferencePair, score
from learners.rewarding import Heldout, centred, examine, margins_of, save, scale_of, teach
from solon.errors import InputError
from solon.feedback.judges.reward_judge import centre_of
from tests.unit.learner_builders import VOCABULARY, write_llama
from tests.unit.learners.test_reward_model import FAST, PAD, good_pairs


def heldout(number: int, seed: int, **more: Any) -> list[Heldout]:
    """Four pairs of each prompt."""
    tags = (("even",), ("odd", "rare"), ("even",), ("odd",))
    return [
        Heldout(
            pair=dataclasses.replace(pair, **more), prompt=str(n // 4), tags=tags[n % 4] if n < 12 else tags[n % 2 * 3]
        )
        for n, pair in enumerate(good_pairs(number, seed))
    ]


def test_members_differ_agree_with_the_pairs_and_are_found_again_by_a_judge(tmp_path: Path):
    llama = write_llama(tmp_path / "llama")
    taught = good_pairs(160, 0)
    members, reports = teach(llama, taught, FAST, members=2, pad_id=PAD)
    assert [one.pairs for one in reports] == [160, 160]
    centre, report = examine(members, heldout(120, 1), centred(members, taught, pessimism=0.5))
    each_MN, _ = margins_of(members, good_pairs(120, 1), centre)
    assert not np.allclose(*each_MN)
    assert report["is_calibrated"]
    assert report["heldout_accuracy"]["value"] > 0.9
    assert set(report["by_tag"]) == {"even", "odd"}
    assert report["heldout_nll"] < math.log(2)
    assert report["disagreement"] > 0
    assert len(report["members_accuracy"]) == 2
    folders = save(members, centre, tmp_path / "out")
    assert folders == [tmp_path / "out", tmp_path / "out" / "member-1"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert centre_of(config, "out") == centre
    assert centre.members == 2


@pytest.mark.parametrize("pessimism", [0.0, 0.7])
def test_a_typical_answer_has_a_margin_of_nothing_whatever_the_members_zero(tmp_path: Path, pessimism: float):
    taught = good_pairs(40, 0)
    members, _ = teach(write_llama(tmp_path), taught, FAST, members=3, pad_id=PAD)
    centre = centred(members, taught, pessimism=pessimism)
    answers = list(dict.fromkeys(ids for pair in taught for ids in (pair.first, pair.second)))
    values = [centre.value(row) for row in np.stack([score(one, answers) for one in members]).T.tolist()]
    assert np.mean(values) == pytest.approx(0, abs=1e-6)
    # A member's own zero says nothing: moving one changes no margin.
    moved = [
        row + offset for row, offset in zip(np.stack([score(one, answers) for one in members]), (0, 9, -4), strict=True)
    ]
    shifted = dataclasses.replace(centre, shifts=tuple(np.add(centre.shifts, (0, 9, -4)).tolist()))
    assert [shifted.value(row) for row in np.stack(moved).T.tolist()] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(
    "pairs",
    [heldout(20, 1), heldout(120, 1, weight=0.0)[:60] + heldout(60, 2), [], [
        dataclasses.replace(one, pair=dataclasses.replace(one.pair, weight=50.0 if n < 4 else 1.0))
        for n, one in enumerate(heldout(120, 1))
    ]],
    ids=["few", "without weight", "none", "few that count"],
)  # fmt: skip
def test_too_few_pairs_leave_the_scale_alone(tmp_path: Path, pairs: list[Heldout]):
    taught = good_pairs(40, 0)
    members, _ = teach(write_llama(tmp_path), taught, FAST, members=1, pad_id=PAD)
    centre, report = examine(members, pairs, centred(members, taught, pessimism=0.0))
    assert (centre.scale, report["is_calibrated"]) == (1.0, False)


def test_margins_that_say_the_opposite_are_not_called_calibrated():
    margins = np.linspace(-3, 3, 200)
    pairs = [PreferencePair(first=(1,), second=(2,), p=float(margin < 0)) for margin in margins]
    assert scale_of(margins, pairs) is None


def test_pessimism_needs_members(tmp_path: Path):
    members, _ = teach(write_llama(tmp_path), good_pairs(8, 0), FAST, members=1, pad_id=PAD)
    with pytest.raises(InputError, match="with one member, expected several"):
        centred(members, good_pairs(8, 0), pessimism=1.0)


@torch.no_grad()
def sampled(path: str, number: int) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...]]], np.ndarray, np.ndarray]:
    """Answers of one token, and the distribution that they are from, by an implementation of its own."""
    network = AutoModelForCausalLM.from_pretrained(path).eval()
    prompts = [(5, 6), (7, 9, 4)]
    logprobs_PV = np.stack([network(torch.tensor([one])).logits[0, -1].log_softmax(-1).numpy() for one in prompts])
    rng = np.random.default_rng(0)
    answers = []
    for prompt, row_V in zip(prompts, np.exp(logprobs_PV.astype(np.float64)), strict=True):
        for token in rng.choice(VOCABULARY, number, p=row_V / row_V.sum()):
            answers.append((prompt, (int(token),)))
    return answers, logprobs_PV, np.array(prompts, dtype=object)


def test_the_drift_is_the_kl_divergence_that_the_whole_distributions_have(tmp_path: Path):
    one, other = write_llama(tmp_path / "a", seed=0), write_llama(tmp_path / "b", seed=1)
    answers, ours_PV, _ = sampled(one, 1500)
    _, theirs_PV, _ = sampled(other, 1)
    exact = float((np.exp(ours_PV) * (ours_PV - theirs_PV)).sum(1).mean())
    found = drift(one, {"itself": one, "other": other}, answers, NetworkConfig(share_prompts=False))
    assert found["itself"].nats == 0
    assert found["other"].nats == pytest.approx(exact, abs=0.06)
    assert found["other"].nats_per_token == pytest.approx(found["other"].nats)
    assert found["other"].standard_error > 0


def test_drift_needs_answers(tmp_path: Path):
    with pytest.raises(InputError, match="got no answers"):
        drift("a", {}, [], NetworkConfig())
