"""Sampling filters and ends: allowed values, their effect on the learner, and refusals."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cluster.config.fitting import _fit_lengths
from cluster.config.run_file import RunFile
from cluster.config.sections import RolloutSection
from cluster.preflight.engines import check_stops
from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.policy import Policy
from solon.engines import filters as filters_module
from solon.engines.base import EngineConfig, Request
from solon.engines.fake import FakeEngine
from solon.engines.filters import FLOOR, allowed_tokens
from solon.engines.sampling import REFUSED, SamplingOptions
from solon.engines.stops import end_ids_of, end_of, is_stopped, stops_of
from solon.engines.tokens import ChatTokenizer
from solon.errors import InputError
from solon.ledger.ledger import Grant
from solon.models.facts import read_facts
from solon.pipeline.rollout import RolloutSettings, RolloutWorker
from solon.protocols import Assignment
from solon.records import Filters, Salvage, Sampling
from tests.unit.fakes import make_prompt
from tests.unit.learner_builders import VOCABULARY, make_group, random_groups, write_llama

# -- which tokens are allowed --------------------------------------------------------------------------------------


def by_hand(logits: list[float], filters: Filters, *, place: int, ends: tuple[int, ...]) -> list[bool]:
    """The definition, token by token."""
    alive = {i: x for i, x in enumerate(logits) if not (place < filters.min_tokens and i in ends)}
    top = max(alive.values())
    alive = {i: x for i, x in alive.items() if math.exp(x - top) >= filters.min_p}
    if filters.top_k:
        least = sorted(alive.values(), reverse=True)[: filters.top_k][-1]
        alive = {i: x for i, x in alive.items() if x >= least}
    total = sum(math.exp(x) for x in alive.values())
    kept, mass = set(), 0.0
    for i in sorted(alive, key=lambda i: -alive[i]):
        if mass < filters.top_p:
            kept.add(i)
        mass += math.exp(alive[i]) / total
    return [i in kept for i in range(len(logits))]


GRID = [
    Filters(top_p=p, top_k=k, min_p=m, min_tokens=n)
    for p, k, m, n in itertools.product([1.0, 0.9, 0.3], [0, 1, 5, 99], [0.0, 0.05, 1.0], [0, 2])
]


@pytest.mark.parametrize("head", [4, 1024])
@pytest.mark.parametrize("elements", [1, 1 << 24])
def test_the_allowed_tokens_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch, head: int, elements: int):
    monkeypatch.setattr(filters_module, "HEAD", head)
    monkeypatch.setattr(filters_module, "ELEMENTS", elements)
    logits_NV = torch.randn(4, 23, generator=torch.Generator().manual_seed(0)) * 2
    logits_NV[3] *= 0.05  # nearly flat: the nucleus is wider than the head
    place_N, ends = torch.tensor([0, 1, 2, 3]), (0, 7)
    for filters in GRID:
        found = allowed_tokens(logits_NV, filters, place_N=place_N, end_ids=ends).tolist()
        for row, logits, place in zip(found, logits_NV.tolist(), place_N.tolist(), strict=True):
            assert row == by_hand(logits, filters, place=place, ends=ends), filters


def test_tokens_of_equal_logits_are_kept_together_and_one_token_always_is():
    logits_NV = torch.tensor([[1.0, 1.0, 1.0, -5.0]])
    for filters in (Filters(top_k=2), Filters(top_p=0.5), Filters(min_p=1.0), Filters(top_k=1, top_p=0.01)):
        assert allowed_tokens(logits_NV, filters).tolist() == [[True, True, True, False]]


def test_default_sampling_filters_nothing():
    assert not Filters()
    assert all(Filters(**change) for change in ({"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, {"min_tokens": 1}))


# -- the learner ---------------------------------------------------------------------------------------------------

FILTERS = Filters(top_p=0.9, top_k=12, min_p=0.02, min_tokens=2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"), initializer_range=0.4)


def first_microbatch(policy: Policy, config: LearnConfig, groups: Any) -> Any:
    from learners.core.batch import Batch

    batch = Batch.of(groups)
    (microbatch,) = policy.layout.microbatches(batch, range(batch.num_rollouts), policy.device)
    return microbatch


def test_the_policy_that_is_scored_is_the_filtered_one_with_its_gradient(llama: str):
    config = LearnConfig(kl_coefficient=0.1, advantages="group")
    policy = Policy(config, model=llama, temperature=0.7, filters=FILTERS, end_ids=(1, 5), reference=True)
    microbatch = first_microbatch(policy, config, random_groups())
    scored = policy.score(microbatch, entropy=True, reference=True)
    logits_MV = policy.logits(microbatch) / 0.7
    allowed_MV = allowed_tokens(logits_MV, FILTERS, place_N=microbatch.place_M, end_ids=(1, 5))
    target_M = microbatch.target_M
    inside_M = allowed_MV[torch.arange(len(target_M)), target_M]
    assert scored.outside_M is not None
    assert torch.equal(scored.outside_M, ~inside_M)
    assert 0 < int(inside_M.sum()) < len(target_M)
    mass_M = logits_MV.exp().masked_fill(~allowed_MV, 0.0).sum(-1)
    expected_M = logits_MV[torch.arange(len(target_M)), target_M] - mass_M.log()
    assert torch.allclose(scored.logprobs_M[inside_M], expected_M[inside_M], atol=1e-5)
    gradients = []
    for total in (scored.logprobs_M[inside_M].sum(), expected_M[inside_M].sum()):
        policy.model.zero_grad()
        total.backward(retain_graph=True)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-4)
    # An end token has no probability in the first two places; entropy and reference are of the same set.
    assert not allowed_MV[microbatch.place_M < 2][:, [1, 5]].any()
    probs_MV = logits_MV.masked_fill(~allowed_MV, -math.inf).softmax(-1)
    entropy_M = -(probs_MV * probs_MV.clamp(min=1e-30).log()).sum(-1)
    assert scored.entropy_M is not None
    assert torch.allclose(scored.entropy_M[inside_M], entropy_M[inside_M], atol=1e-4)
    assert scored.reference_M is not None
    assert torch.allclose(scored.reference_M, scored.logprobs_M, atol=1e-5)


def test_without_filters_nothing_is_sorted_or_masked(llama: str, monkeypatch: pytest.MonkeyPatch):
    config = LearnConfig(advantages="group")
    policy = Policy(config, model=llama, temperature=0.7, reference=True)
    monkeypatch.setattr("learners.core.policy.allowed_tokens", None)
    scored = policy.score(first_microbatch(policy, config, random_groups()))
    assert scored.outside_M is None
    assert scored.entropy_M is None


@pytest.mark.parametrize(
    "changes",
    [
        {"advantages": "group"},
        {"advantages": "gae"},
        {"advantages": "group", "entropy_bonus": 0.01},
        {"advantages": "group", "bypass": True, "importance": "none", "minibatches": 1},
    ],
)
def test_a_token_outside_the_set_is_finite_and_reported_and_trains_nothing(llama: str, changes: dict[str, Any]):
    config = LearnConfig(learning_rate=1e-3, kl_coefficient=0.05, **changes)
    learner = build_learner(config, model=llama, temperature=0.7, seed=0, filters=FILTERS, end_ids=(1,))
    report, _ = learner.step(0, random_groups())
    assert all(math.isfinite(value) for value in report.metrics.values())
    assert 0 < report.metrics["learn/outside_set/share"] < 1
    # The reference is the policy itself, over the same set.
    assert report.metrics["learn/kl_reference/mean"] == pytest.approx(0, abs=1e-5) or config.bypass


def test_a_batch_whose_tokens_are_all_outside_the_set_leaves_the_policy_as_it_is(llama: str):
    config = LearnConfig(learning_rate=1e-2, kl_coefficient=0.0, advantages="group")
    learner = build_learner(config, model=llama, temperature=1.0, seed=0, filters=Filters(top_k=1))
    worst = worst_tokens(llama, [4, 5, 6])
    groups = [make_group(0, [4, 5, 6], [[worst], [worst]], [1.0, -1.0])]
    report, _ = learner.step(0, groups)
    assert report.metrics["learn/outside_set/share"] == 1.0
    assert report.metrics["learn/grad_norm/max"] == 0.0


@torch.no_grad()
def worst_tokens(model: str, prompt: list[int]) -> int:
    from transformers import AutoModelForCausalLM

    logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([prompt])).logits[0, -1]
    return int(logits.argmin())


def test_a_least_length_without_the_ends_it_is_about_is_refused(llama: str):
    with pytest.raises(ValueError, match="min_tokens = 2 without the tokens that end"):
        Policy(LearnConfig(), model=llama, temperature=1.0, filters=FILTERS)


def test_the_floor_is_no_probability_and_no_gradient():
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    logprobs = logits.masked_fill(torch.tensor([[True, False, False]]), FLOOR).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum()
    entropy.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0] == 0


# -- engines -------------------------------------------------------------------------------------------------------


def run(engine: FakeEngine, **request: Any) -> Any:
    engine.add(Request(request_id="r", prompt_token_ids=request.pop("prompt", (5, 6)), max_tokens=24, **request))
    while True:
        for completion in engine.step():
            return completion


def test_an_engine_samples_from_the_set_and_returns_its_log_probs():
    engine = FakeEngine()
    for seed in range(20):
        done = run(engine, filters=Filters(top_k=3, min_tokens=4), seed=seed)
        assert len(done.token_ids) > 4
        assert np.exp(done.logprobs).min() > 1 / len(engine.tokenizer)
        previous = [6, *done.token_ids[:-1].tolist()]
        for place, (last, token) in enumerate(zip(previous, done.token_ids.tolist(), strict=True)):
            logits = engine._logprobs_VV[last].copy()
            if place < 4:
                logits[0] = -math.inf
            kept = np.sort(logits)[-3:]
            assert done.logprobs[place] == pytest.approx(logits[token] - np.log(np.exp(kept).sum()), abs=1e-6)


def text_of(tokenizer: Any, token_ids: list[int], *, stop: tuple[str, ...], stop_token_ids: tuple[int, ...]) -> str:
    ids, end = end_of(tokenizer, token_ids, stop=stop, stop_token_ids=stop_token_ids)
    return str(tokenizer.decode(ids)).removesuffix(end).strip()


def test_a_stop_string_ends_an_answer_whose_tokens_stay_and_whose_text_ends_before_it():
    engine = FakeEngine()
    tokenizer = engine.tokenizer
    stop = ("is blue", "grass")
    ended = 0
    for seed in range(200):
        done = run(engine, stop=stop, seed=seed)
        ids = done.token_ids.tolist()
        text = text_of(tokenizer, ids, stop=stop, stop_token_ids=())
        if done.finish_reason == "stop" and ids[-1] != tokenizer.eos_token_id:
            ended += 1
            assert tokenizer.decode(ids).endswith(stop)
            assert text == tokenizer.decode(ids[: -1 if ids[-1] == tokenizer.encode("grass")[0] else -2])
        assert not any(one in text for one in stop)
    assert ended > 50


def test_a_stop_token_ends_an_answer_and_stands_in_no_text():
    engine = FakeEngine()
    (blue,) = engine.tokenizer.encode("blue")
    done = next(d for s in range(50) if (d := run(engine, stop_token_ids=(blue,), seed=s)).token_ids[-1] == blue)
    assert done.finish_reason == "stop"
    assert "blue" not in text_of(engine.tokenizer, done.token_ids.tolist(), stop=(), stop_token_ids=(blue,))


def test_a_stop_string_is_found_across_the_tokens_that_a_lost_engine_wrote():
    tokenizer = FakeEngine().tokenizer
    sky, is_, blue = tokenizer.encode("sky is blue")
    asked = Request(request_id="r", prompt_token_ids=(4, sky, is_), max_tokens=9, stop=("is blue",))
    assert is_stopped(tokenizer, replace(asked, written=2), [blue])
    assert not is_stopped(tokenizer, asked, [blue])  # a stop string in the prompt ends nothing
    least = Filters(min_tokens=3)
    assert not is_stopped(tokenizer, replace(asked, written=2, filters=least), [blue])


async def test_an_answer_continued_on_another_engine_keeps_its_least_length_and_loses_its_stop_string():
    sampling = Sampling(max_tokens=24, filters=Filters(top_k=6, min_tokens=8), stop=("is blue",))
    worker = RolloutWorker(
        EngineConfig(model="fake"),
        RolloutSettings(sampling=sampling, group_size=1, seed=3),
        name="rollout-0",
        build=lambda config, name: FakeEngine(name=name),
    )
    await worker.start()
    begun = (await only_group(worker)).rollouts[0]
    cut = Salvage(
        ordinal=0, attempt=0, token_ids=begun.token_ids[:5], logprobs=begun.logprobs[:5], segments=(((0, 5),),),
        finish_reasons=("abort",),
    )  # fmt: skip
    group = await only_group(worker, cut)
    await worker.close()
    (whole,) = group.rollouts
    assert whole.token_ids[:5].tolist() == cut.token_ids.tolist()
    assert len(whole.token_ids) > 8
    assert 0 not in whole.token_ids[:8].tolist()
    assert not whole.text.endswith("is blue")


async def only_group(worker: RolloutWorker, *salvage: Salvage) -> Any:
    grant = Grant(ordinal=0, attempt=0, version=0, salvage=salvage)
    async for item in worker.generate([Assignment(grant=grant, prompt=make_prompt())]):
        if not isinstance(item, Salvage):
            return item[1]
    raise AssertionError("no group came")


def byte_tokenizer() -> ChatTokenizer:
    """One token per byte: characters are split over tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return ChatTokenizer(fast)


def test_a_stop_string_is_found_in_bytes_in_white_space_and_as_one_special_token():
    tokenizer = byte_tokenizer()
    for stop, text in (("漢", "a漢"), ("\n\n", "so\n\n"), ("User:", "yes.\nUser:")):
        ids = tokenizer.encode(text)
        asked = Request(request_id="r", prompt_token_ids=(0,), max_tokens=99, stop=(stop,))
        hits = [n for n in range(1, len(ids) + 1) if is_stopped(tokenizer, asked, ids[:n])]
        assert hits == [len(ids)]
        assert text_of(tokenizer, ids, stop=(stop,), stop_token_ids=()) == text.removesuffix(stop).strip()
    sampling = Sampling(max_tokens=9, stop=("<|end|>", "User:"), stop_token_ids=(3,))
    assert stops_of(tokenizer, sampling) == (("User:",), (3, tokenizer.eos_token_id))


def test_the_learner_knows_the_same_ends_as_the_engine(llama: str):
    assert end_ids_of(llama, Sampling(max_tokens=9, stop=("<eos>", "w5"), stop_token_ids=(4,))) == (1, 4)


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", REFUSED)
def test_a_setting_that_cannot_be_reproduced_is_refused_with_its_reason(key: str):
    with pytest.raises(ValidationError, match=f"`{key}` is refused: .*(; put|; set)"):
        SamplingOptions.model_validate({key: 1})


@pytest.mark.parametrize("temperature", [1e-7, 0.0, 0.009, math.nan, -1.0])
def test_a_temperature_below_what_engines_sample_at_is_refused(temperature: float):
    with pytest.raises(ValidationError, match=r"expected at least 0\.01"):
        SamplingOptions(temperature=temperature)


def test_an_engine_accepts_temperature_zero_and_refuses_values_between_zero_and_the_minimum():
    for temperature in (0.0, 0.01):
        FakeEngine().add(Request(request_id="r", prompt_token_ids=(5,), max_tokens=1, temperature=temperature))
    for temperature in (1e-7, 0.005, -1.0, math.nan):
        with pytest.raises(InputError, match=r"expected 0\.01 or more, or 0"):
            FakeEngine().add(Request(request_id="r", prompt_token_ids=(5,), max_tokens=1, temperature=temperature))


def test_settings_are_translated_into_engine_arguments():
    options = SamplingOptions.model_validate({"stop": "\n\n", "top_p": 0.9, "min_tokens": 4, "stop_token_ids": [7]})
    assert options.sampling() == Sampling(
        max_tokens=256, filters=Filters(top_p=0.9, min_tokens=4), stop=("\n\n",), stop_token_ids=(7,)
    )
    for wrong in ({"min_tokens": 9, "max_tokens": 8}, {"stop": ["a", ""]}, {"stop_token_ids": [-1]}, {"top_p": 0}):
        with pytest.raises(ValidationError):
            SamplingOptions.model_validate(wrong)


def test_the_check_finds_a_stop_token_beyond_the_vocabulary_and_a_least_length_beyond_the_context(llama: str):
    facts = read_facts(Path(llama))
    check_stops(facts, RolloutSection(stop_token_ids=(VOCABULARY - 1,)))
    with pytest.raises(InputError, match=rf"stop_token_ids holds \[{VOCABULARY}\], expected ids below {VOCABULARY}"):
        check_stops(facts, RolloutSection(stop_token_ids=(VOCABULARY,)))
    with pytest.raises(InputError, match="min_tokens = 40 exceeds half of the policy's context of 64"):
        _fit_lengths(RolloutSection(min_tokens=40), 64)


def test_a_run_file_says_why_a_sampling_setting_is_refused():
    raw = {"policy": "p", "judge": "j", "prompts": "x", "constitution": "c"}
    for section, said in (
        ({"repetition_penalty": 1.1}, "`rollout`: `repetition_penalty` is refused: it changes with the tokens written"),
        ({"temperature": 1e-7}, "`rollout.temperature`: temperature = 1e-07, expected at least 0.01"),
        ({"top_q": 0.9}, "unknown key `rollout.top_q`"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            RunFile.parse(raw | {"rollout": section}, source="run.toml")
    run = RunFile.parse(raw | {"rollout": {"top_k": 5, "stop": ["a"]}}, source="run.toml")
    assert run.rollout.sampling().filters == Filters(top_k=5)
