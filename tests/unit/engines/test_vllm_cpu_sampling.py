"""Sampling by inverting the cumulative distribution."""

from __future__ import annotations

import pytest
import torch

from solon.engines.vllm_cpu_sampling import BLOCK, draw_tokens, draw_uniforms


@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 1000])
def test_tokens_are_drawn_as_often_as_their_probability_says(vocabulary: int):
    torch.manual_seed(0)
    probs_V = torch.softmax(3 * torch.randn(vocabulary), 0)
    number = 200_000
    tokens_B = draw_tokens(probs_V.expand(number, -1), draw_uniforms(number, {}))
    counts_V = torch.bincount(tokens_B, minlength=vocabulary).double()
    expected_V = number * probs_V.double()
    spread_V = (expected_V * (1 - probs_V.double())).sqrt().clamp(min=1.0)
    assert float(((counts_V - expected_V) / spread_V).abs().max()) < 5


def test_a_token_of_probability_zero_is_never_drawn_even_at_the_ends_of_the_interval():
    probs_BV = torch.zeros(3, 700)
    probs_BV[:, 300], probs_BV[:, 301] = 0.25, 0.75
    ends_B = torch.tensor([0.0, 1 - 2**-53, 0.25], dtype=torch.float64)
    assert draw_tokens(probs_BV, ends_B).tolist() == [300, 301, 301]


def test_probabilities_that_do_not_sum_to_one_exactly_still_give_a_token():
    probs_BV = torch.full((2, 49_152), 1 / 49_152) * torch.tensor([[1 - 1e-6], [1 + 1e-6]])
    tokens_B = draw_tokens(probs_BV, torch.full((2,), 1 - 2**-53, dtype=torch.float64))
    assert tokens_B.tolist() == [49_151, 49_151]


def test_a_request_with_a_seed_draws_the_same_numbers_whatever_else_is_in_the_batch():
    def numbers(index: int, size: int) -> list[float]:
        generator = torch.Generator().manual_seed(7)
        return [float(draw_uniforms(size, {index: generator})[index]) for _ in range(5)]

    assert numbers(0, 1) == numbers(3, 9)
    assert len(set(numbers(0, 1))) == 5
