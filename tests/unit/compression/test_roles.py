"""Reward models and critics: how they are scored, what their gate measures, and where their certificates count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from cluster.preflight.models import check_model
from compression.export import export
from compression.flips import BETA
from compression.gate.gate import Decision, decide
from compression.gate.thresholds import thresholds
from compression.live import LiveModel, load_model
from compression.pairs import Pair, Scores
from compression.request import Request
from compression.roles import ROLES, reordered, reward_shift, rewards_of
from compression.served_check import Speed, check_in_vllm, compared, said
from compression.units import skeleton, uniform, units_of
from compression.workflow import Compression
from serve_apps.versions import require_certificate
from solon.engines.base import EngineConfig
from solon.engines.model_files import copy_companions
from solon.engines.scoring import build_scoring_engine
from solon.errors import InputError
from solon.feedback.judges.reward_judge import CENTRE
from solon.models.certificate import read_certificate
from tests.models import make_model
from tests.unit.compression.test_workflow import make_pairs

SCALE, SHIFT = 2.0, 0.3


def make_reward_model(path: Path, **centre: Any) -> Path:
    """With a head of random weights, an end of turn that is no padding, and a centre."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    base = make_model(path.with_name(f"{path.name}-base"))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(base, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).to(torch.float32).save_pretrained(path)
    copy_companions(base, path)
    file = path / "config.json"
    given = {"shifts": [SHIFT], "scale": SCALE, "pessimism": 0.0, **centre}
    file.write_text(json.dumps({**json.loads(file.read_text()), CENTRE: given}))
    return path


def compress(folder: Path, model: Path, role: Any, pairs: list[Pair], **settings: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"form": "w8a8", "answers": 0, "serve": False, **settings}
    return Compression(Request(model=model, out=folder / "out", role=role, **chosen), pairs).run()


def test_a_compressed_reward_model_gives_the_feedback_the_rewards_that_the_gate_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    source = make_reward_model(tmp_path / "model")
    live, pairs = LiveModel.load(source), make_pairs(40)
    assignment = uniform(live.units, "w8a8")
    export(source, tmp_path / "small", live.units, assignment)
    with live.compressed(assignment) as model:
        expected = rewards_of(model, pairs)
    capfd.readouterr()
    found = rewards_of(load_model(tmp_path / "small"), pairs)
    assert np.array_equal(found.margin_P, expected.margin_P)
    engine = build_scoring_engine(
        EngineConfig(model=str(tmp_path / "small"), backend="transformers", max_model_len=128), name="judge"
    )
    rewards = engine.score([(*pair.prompt, *pair.chosen) for pair in pairs])
    assert BETA * found.chosen_P == pytest.approx((np.array(rewards) - SHIFT) * SCALE, abs=1e-5)
    assert capfd.readouterr().err == ""  # no progress bar
    assert json.loads((tmp_path / "small" / "config.json").read_text())[CENTRE]["scale"] == SCALE


def test_a_reward_model_is_certified_as_one_and_counts_as_nothing_else(tmp_path: Path):
    source = make_reward_model(tmp_path / "model")
    report = compress(tmp_path, source, "reward_model", make_pairs(1500))
    assert report["verdict"] == "accept", report["reason"]
    rows = {row["name"]: row for row in report["candidates"][0]["rows"]}
    assert rows["order of a prompt's answers"]["threshold"] == 0.05
    assert rows["order of a prompt's answers"]["value"] == pytest.approx(rows["flips"]["value"])  # two answers each
    assert abs(report["candidates"][0]["figures"]["reward_shift"]) < 0.1
    assert report["candidates"][0]["figures"]["nll"] is None
    assert read_certificate(tmp_path / "out")["role"] == "reward_model"
    facts = check_model(str(tmp_path / "out"), role="judge")
    assert facts is not None
    assert facts.gives_rewards
    with pytest.raises(InputError, match="certified as a reward_model, expected a policy"):
        check_model(str(tmp_path / "out"), role="policy")


def test_a_reward_model_is_scored_at_every_size_and_rounded_with_gptq(tmp_path: Path):
    source = make_reward_model(tmp_path / "model")
    report = compress(
        tmp_path, source, "reward_model", make_pairs(700), form="", size=0.2, algorithm="gptq", gate="lenient"
    )
    assert report["ranking_agreement"] is None  # perplexity says nothing of a reward model
    assert report["linear_bytes"]["after"] <= 0.2 * report["linear_bytes"]["before"]


def test_a_role_that_a_model_does_not_have_is_refused(tmp_path: Path):
    rewards = make_reward_model(tmp_path / "rewards")
    with pytest.raises(InputError, match=r"is a reward model by its config.json, and --role is policy"):
        compress(tmp_path, rewards, "policy", make_pairs(700))
    with pytest.raises(InputError, match="is no reward model"):
        compress(tmp_path, tmp_path / "rewards-base", "reward_model", make_pairs(700))
    several = make_reward_model(tmp_path / "several", shifts=[0.1, 0.2])
    with pytest.raises(InputError, match="has 2 members, expected a reward model of one"):
        compress(tmp_path, several, "reward_model", make_pairs(700))
    assert [one.name for one in units_of(skeleton(rewards))][:2] == ["0.qkv", "0.o"]


def test_the_share_of_reordered_answers_is_kendalls_tau_and_moves_with_no_shift():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=6), rng.normal(size=6)
    pairs = [Pair(prompt_id="p", prompt=(1,), chosen=(i,), rejected=(5,)) for i in range(5)]
    pairs.append(Pair(prompt_id="alone", prompt=(2,), chosen=(7,), rejected=(7,)))

    def scores(values: Any) -> Scores:
        chosen, rejected = np.append(values[:5], 1.0), np.append(np.full(5, values[5]), 1.0)
        return Scores(chosen_P=chosen, rejected_P=rejected, tokens_P=np.zeros(6))

    shares, prompts = reordered(pairs, scores(before), scores(after))
    assert prompts == ("p",)  # one answer has no order
    assert shares == pytest.approx([(1 - kendalltau(before, after).statistic) / 2])
    assert reordered(pairs, scores(before), scores(2 * before + 1))[0].tolist() == [0.0]
    shifted = Scores(chosen_P=np.array([3.0, 5.0]), rejected_P=np.array([1.0, 3.0]), tokens_P=np.zeros(2))
    moved = Scores(chosen_P=shifted.chosen_P + 1, rejected_P=shifted.rejected_P + 1, tokens_P=np.zeros(2))
    assert reward_shift(shifted, moved)["reward_shift"] == pytest.approx(1 / np.std([3, 5, 1, 3]))


def test_a_critic_is_held_to_a_judges_flips_and_its_certificate_counts_where_critiques_are_written(tmp_path: Path):
    assert thresholds("strict", "critic").flips == thresholds("strict", "judge").flips == 0.05
    assert thresholds("strict", "policy").flips == 0.08
    assert ROLES["critic"] == ROLES["policy"]
    report = compress(tmp_path, make_model(tmp_path / "model"), "critic", make_pairs(700))
    assert report["verdict"] == "accept", report["reason"]
    small = str(tmp_path / "out")
    with pytest.raises(InputError, match="certified as a critic, expected a policy"):
        check_model(small, role="policy")
    check_model(small, role="policy", certified_as=("critic",))
    require_certificate(small, where="writers.w", others=("critic",))
    with pytest.raises(InputError, match="certified as a critic"):
        require_certificate(small, where="policies.p")


def test_a_copy_for_which_too_little_error_is_left_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines: list[str] = []

    def rejected(*given: Any, **more: Any) -> Decision:
        return replace(decide(*given, **more), verdict="reject", reason="for the test")

    monkeypatch.setattr("compression.workflow.decide", rejected)
    request = Request(
        model=make_model(tmp_path / "model"), out=tmp_path / "out", form="w8a8", answers=0, serve=False, recover=True
    )
    untagged = [replace(pair, tags=()) for pair in make_pairs(700)]
    report = Compression(request, untagged, say=lines.append).run()
    # 345 prompts are enough for the first two copies: the third needs 366.
    assert [one["alpha"] for one in report["candidates"]] == [0.0125, 0.00625]
    assert any(line.startswith("copy 3 is not tried") and "expected at least 366" in line for line in lines)


def test_speeds_are_reported_with_their_ratio_and_type():
    one = Speed(dtype="bfloat16", prefill=1000.0, decode=100.0)
    found = compared(one, Speed(dtype="bfloat16", prefill=1500.0, decode=50.0))
    assert found["ratio"] == {"prefill": 1.5, "decode": 0.5}
    assert said(found) == (
        "speed in vLLM (bfloat16): prompts 1,000 -> 1,500 tokens/s (1.50 x), answers 100 -> 50 tokens/s (0.50 x)"
    )
    rewards = Speed(dtype="bfloat16", prefill=10.0, decode=None)
    assert compared(rewards, rewards)["ratio"] == {"prefill": 1.0}


@pytest.mark.engine
@pytest.mark.parametrize("form", ["w8a8", "w4a16-g128"])
def test_vllm_gives_rewards_of_a_compressed_reward_model(tmp_path: Path, form: str):
    source = make_reward_model(tmp_path / "model")
    units = units_of(skeleton(source))
    export(source, tmp_path / "small", units, uniform(units, form))
    prompts = [(*pair.prompt, *pair.chosen) for pair in make_pairs(16)]
    found = check_in_vllm(tmp_path / "small", prompts, log=tmp_path / "log")
    assert (found.dtype, found.decode) == ("bfloat16", None)
    assert found.prefill > 0


@pytest.mark.engine
def test_the_speed_of_a_policy_and_its_copy_is_measured_in_one_type(tmp_path: Path):
    source = make_model(tmp_path / "model")
    units = units_of(skeleton(source))
    export(source, tmp_path / "small", units, uniform(units, "w8a8"))
    prompts = [pair.prompt for pair in make_pairs(16)]
    original, copy = (check_in_vllm(path, prompts, log=tmp_path / "log") for path in (source, tmp_path / "small"))
    assert original.dtype == copy.dtype == "bfloat16"
    assert min(compared(original, copy)["ratio"].values()) > 0
