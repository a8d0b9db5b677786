"""Layouts: nothing lost, budgets kept, and a shared prompt changes no log-prob."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from learners.config import LearnConfig
from learners.core.batch import Batch
from learners.core.packing import Layout, pack
from learners.core.policy import Policy
from solon.errors import RunFailedError
from tests.unit.learner_builders import VOCABULARY, make_group, random_groups, write_llama, write_tokenizer

CPU = torch.device("cpu")


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_packing_loses_nothing_keeps_the_budget_and_is_sorted(lengths, budget):
    bins = pack(lengths, budget)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(lengths)))
    for chosen in bins:
        assert len(chosen) == 1 or max(lengths[i] for i in chosen) * len(chosen) <= budget
    flat = [lengths[i] for chosen in bins for i in chosen]
    assert flat == sorted(flat, reverse=True)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 120), st.integers(0, 60))
def test_no_other_cut_of_the_sorted_rows_costs_less(lengths, budget, overhead):
    def cost(bins):
        return sum(max(chosen) * len(chosen) + overhead for chosen in bins)

    rows = sorted(lengths, reverse=True)
    least = None
    for cuts in product([False, True], repeat=len(rows) - 1):
        bins = [[rows[0]]]
        for row, is_cut in zip(rows[1:], cuts, strict=True):
            if is_cut:
                bins.append([])
            bins[-1].append(row)
        if all(len(chosen) == 1 or max(chosen) * len(chosen) <= budget for chosen in bins):
            least = cost(bins) if least is None else min(least, cost(bins))
    assert cost([[lengths[i] for i in chosen] for chosen in pack(lengths, budget, overhead)]) == least


@pytest.mark.parametrize("share", [False, True])
def test_every_response_token_is_predicted_once_from_the_position_before_it(share):
    batch = Batch.of(random_groups(5, 4, seed=1))
    layout = Layout(max_tokens=64, share=share, hidden=32)
    microbatches = layout.microbatches(batch, range(batch.num_rollouts), CPU)
    index = torch.cat([m.index_M for m in microbatches])
    assert sorted(index.tolist()) == list(range(batch.num_tokens))
    assert any(m.mask_B1TT is not None for m in microbatches) == share
    for m in microbatches:
        assert m.padded <= 64 or len(m.input_BT) == 1
        flat = m.input_BT.flatten()
        for at, token, position in zip(m.target_M, m.index_M, m.predict_M, strict=True):
            n = int(token)
            assert int(at) == batch.token_N[n]
            rollout = batch.rollout_N[n]
            first = n == batch.start_R[rollout]
            before = batch.prompts[batch.group_R[rollout]][-1] if first else batch.token_N[n - 1]
            assert int(flat[position]) == before


def write_gemma(directory):
    torch.manual_seed(0)
    Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=16,
            final_logit_softcapping=3.0, pad_token_id=0, eos_token_id=1, bos_token_id=2, initializer_range=0.3,
        )
    ).save_pretrained(directory)  # fmt: skip
    write_tokenizer(directory)
    return str(directory)


def write_qwen(directory):
    torch.manual_seed(0)
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=1,
            tie_word_embeddings=False, initializer_range=0.3,
        )
    ).save_pretrained(directory)  # fmt: skip
    write_tokenizer(directory)
    return str(directory)


@pytest.mark.parametrize("write", [write_llama, write_gemma, write_qwen])
@pytest.mark.parametrize("share", [False, True])
def test_log_probs_equal_those_of_one_sequence_at_a_time(tmp_path, write, share):
    config = LearnConfig(share_prompts=share, max_tokens_per_microbatch=64, kl_coefficient=0.0)
    policy = Policy(config, model=write(tmp_path), temperature=0.7)
    layout = policy.layout
    # Gemma's attention is windowed in one layer and capped: it may fall back to unshared prompts.
    assert layout.share == share or write is write_gemma
    batch = Batch.of(random_groups(3, 3, seed=2))
    found = torch.zeros(batch.num_tokens)
    with torch.no_grad():
        for microbatch in layout.microbatches(batch, range(batch.num_rollouts), CPU):
            found[microbatch.index_M] = policy.logprobs(microbatch)
    for rollout, start in enumerate(batch.start_R):
        prompt = batch.prompts[batch.group_R[rollout]]
        answer = slice(start, start + batch.length_R[rollout])
        ids = torch.from_numpy(np.concatenate([prompt, batch.token_N[answer]]))
        with torch.no_grad():
            logprobs = (policy.model(ids[None]).logits[0] / 0.7).log_softmax(-1)
        alone = logprobs[len(prompt) - 1 : -1].gather(-1, ids[len(prompt) :, None])[:, 0]
        torch.testing.assert_close(found[answer], alone, atol=2e-5, rtol=1e-4)


def test_long_answers_do_not_share_and_short_ones_do():
    layout = Layout(max_tokens=10**6, share=True, hidden=128)
    assert layout.answers_per_row(40, [20] * 8) == 8
    assert layout.answers_per_row(20, [4000] * 8) == 1
    assert Layout(max_tokens=100, share=True, hidden=128).answers_per_row(40, [20] * 8) == 3


def test_by_segments_all_answers_share_whatever_their_length():
    layout = Layout(max_tokens=10**6, share=True, hidden=128, segments=True)
    for prompt, answer in ((40, 20), (20, 4000), (2000, 20), (1, 1000), (8000, 8000)):
        assert layout.answers_per_row(prompt, [answer] * 8) == 8


def test_rollouts_without_a_reward_or_tokens_are_left_out():
    batch = Batch.of([make_group(0, [3, 4], [[5], [6, 7], [], [8]], [None, 1.0, 2.0, 30.0])], reward_clip=10.0)
    assert batch.member_R.tolist() == [1, 3]
    assert batch.token_N.tolist() == [6, 7, 8]
    assert batch.reward_R.tolist() == [1.0, 10.0]
    assert batch.group_rewards == ((None, 1.0, 2.0, 10.0),)


def test_a_batch_that_cannot_be_trained_ends_the_run_with_the_cause():
    with pytest.raises(RunFailedError, match="none of the 2 rollouts of 1 groups has a reward"):
        Batch.of([make_group(0, [3], [[5], [6]], [None, None])])
    with pytest.raises(RunFailedError, match="holds a group twice"):
        Batch.of([make_group(7, [3], [[5]], [1.0]), make_group(7, [3], [[5]], [1.0])])
    with pytest.raises(RunFailedError, match="expected one log-prob and one version per token"):
        Batch.of([make_group(0, [3], [[5, 6]], [1.0], logprobs=[[-1.0]])])
    with pytest.raises(RunFailedError, match="not finite"):
        Batch.of([make_group(0, [3], [[5]], [1.0], logprobs=[[float("-inf")]])])
    with pytest.raises(RunFailedError, match="expected a finite number or None"):
        Batch.of([make_group(0, [3], [[5]], [float("nan")])])
    with pytest.raises(RunFailedError, match="has the token 40, expected one below 32"):
        Batch.of([make_group(0, [3], [[40]], [1.0])], vocabulary=VOCABULARY)
    with pytest.raises(RunFailedError, match="empty prompt"):
        Batch.of([make_group(0, [], [[4]], [1.0])])
