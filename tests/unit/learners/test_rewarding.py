"""Reward models as judges: members, centre, scale and figures; and how far a policy has moved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.core.config import NetworkConfig
from learners.drift import drift
from learners.rewarding import Centre, centre, examine, margins_of, save, teach
from solon.engines.base import EngineConfig
from solon.errors import InputError
from solon.feedback.judges.reward_judge import centre_of
from tests.unit.learner_builders import VOCABULARY, write_llama
from tests.unit.learners.test_reward_model import FAST, PAD, good_pairs


def test_members_differ_agree_with_the_pairs_and_are_found_again_by_a_judge(tmp_path: Path):
    llama = write_llama(tmp_path / "llama")
    taught, heldout = good_pairs(160, 0), good_pairs(120, 1)
    members, reports = teach(llama, taught, FAST, members=2, pad_id=PAD)
    assert [one.pairs for one in reports] == [160, 160]
    margins_MN = margins_of(members, heldout)
    assert not np.allclose(*margins_MN)
    found = centre(members, taught, heldout)
    assert found.is_calibrated
    report = examine(
        members, heldout, [("even",) if n % 2 else ("odd", "rare")[: 1 + (n < 6)] for n in range(120)], found.scale
    )
    assert report["heldout_accuracy"]["value"] > 0.9
    assert set(report["by_tag"]) == {"even", "odd"}
    assert report["heldout_nll"] < math.log(2)
    assert report["disagreement"] > 0
    assert len(report["members_accuracy"]) == 2
    folders = save(members, found, tmp_path / "out", pessimism=0.5)
    assert folders == [tmp_path / "out", tmp_path / "out" / "member-1"]
    read = centre_of(EngineConfig(model=str(tmp_path / "out")))
    assert (read.shift, read.scale, read.members, read.pessimism) == (found.shift, found.scale, 2, 0.5)


def test_a_typical_answer_has_a_margin_of_nothing_and_few_pairs_leave_the_scale_alone(tmp_path: Path):
    from learners.networks.reward_model import score

    taught = good_pairs(40, 0)
    members, _ = teach(write_llama(tmp_path), taught, FAST, members=1, pad_id=PAD)
    found = centre(members, taught, good_pairs(20, 1))
    assert (found.scale, found.is_calibrated) == (1.0, False)
    answers = list(dict.fromkeys(ids for pair in taught for ids in (pair.first, pair.second)))
    assert score(members[0], answers).mean() == pytest.approx(found.shift, abs=1e-6)
    assert examine(members, [], [], 1.0) == {}


def test_pessimism_needs_members(tmp_path: Path):
    members, _ = teach(write_llama(tmp_path), good_pairs(8, 0), FAST, members=1, pad_id=PAD)
    with pytest.raises(InputError, match="with one member, expected several"):
        save(members, Centre(shift=0, scale=1, is_calibrated=False), tmp_path / "out", pessimism=1.0)


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
